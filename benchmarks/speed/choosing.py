"""Time of the last command of `select` for a very large pool, after all scores are computed: a simulation.

    python benchmarks/speed/choosing.py OUT.json [IMAGES]      default: 100,000,000 images

The script writes random scores to files like those of the cache, without logits. Confidence and distance are like those
of a teacher of 1,000 classes, of which some are rare. Each row runs in its own process. `check` reads every score once,
which finds damaged files. `threshold` and `statistics` choose half of the images, evenly over the classes. `merge`
reads the scores twice more, to count the classes and to write `scores.parquet`. For a tenth of the images, the choice
is also made in memory, and must be the same. `bytes_an_image` is the peak of the process's own memory, above that after
its imports. The files take 2 GB for 100 million images.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path

import numpy as np

from dfkd.select import choose, methods, score, stored_scores, streaming
from dfkd.select.selected import Selected
from dfkd.system.checked_parquet import write_columns
from dfkd.system.device import machine, resolve_place

CLASSES = 1000
OPTIONS = {"threshold": {"gamma": 0.7, "draw": "confidence"}, "statistics": {"weight": 0.0}}


def write_part(folder, part, rows):
    """Write the scores of a part of the pool."""
    rng = np.random.default_rng(part)
    classes = (CLASSES * rng.random(rows) ** 2).astype(np.int32)
    confidence = rng.beta(2, 1, rows).astype(np.float32)
    columns = {
        "confidence": np.maximum(confidence, 1 / CLASSES).astype(np.float32),
        "entropy": (1 - confidence) * rng.random(rows, np.float32),
        "prediction": classes,
        "distance": rng.lognormal(0, 0.5, rows).astype(np.float32),
        "problem": np.full(rows, None, dtype=object),
    }
    write_columns(stored_scores.scores_file(folder, part), columns)


def write_pool(folder, images):
    """Write the scores of all parts. Returns wall seconds, processor seconds, and bytes on disk per image."""
    started, used = time.perf_counter(), time.process_time()
    for part, start in enumerate(range(0, images, stored_scores.PART_ROWS)):
        write_part(folder, part, min(stored_scores.PART_ROWS, images - start))
    size = sum(file.stat().st_size for file in folder.iterdir())
    return round(time.perf_counter() - started, 2), round(time.process_time() - used, 2), round(size / images, 2)


def own_memory():
    """Return the bytes of the process's memory without mapped files."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


def measured(what, images, work):
    """Return a row: wall seconds, processor seconds, and the memory peak while `work` runs."""
    before, peak, ended = own_memory(), [0], threading.Event()

    def watch():
        while not ended.wait(0.02):
            peak[0] = max(peak[0], own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started, used = time.perf_counter(), time.process_time()
    try:
        found = work()
    finally:
        seconds, used = time.perf_counter() - started, time.process_time() - used
        ended.set()
        watcher.join()
    grown = max(0, peak[0] - before)
    row = {
        "what": what,
        "images": images,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used, 2),
        "peak_bytes": grown,
    }
    return {**row, "bytes_an_image": round(grown / images, 2), **found}


def choice_row(what, pool, in_memory):
    """Return the row of choosing half of the images."""
    method, options = getattr(methods, what), OPTIONS[what]
    traits, common = methods.Traits.of(method), {"count": pool.rows // 2, "seed": 0}

    def work():
        if in_memory:
            choice = choose.choose(
                pool.images, pool.readable, lambda scores, rng: method(scores, rng, **options), features=list,
                balance="class", reach=traits.reach, **common,
            )  # fmt: skip
        else:
            choice = streaming.choose_streaming(
                pool.parts, pool.rows, traits.scale(**options), groups=CLASSES, reach=traits.reach, **common
            )
        return {"selected": len(choice), "sha256": hashlib.sha256(choice.reasons.tobytes()).hexdigest()[:16]}

    return measured(f"{what}, in memory" if in_memory else what, pool.rows, work)


def check_row(folder, images):
    """Return the row of the first step of `select`: read all scores, to find missing or damaged ones."""

    def work():
        parts = range(-(-images // stored_scores.PART_ROWS))
        todo, damaged = score._cached(folder, parts, None, images, {})
        assert not todo and not damaged
        return {}

    return measured("check", images, work)


def merge_row(pool):
    """Return the row of counting the chosen images' classes, and reading what `scores.parquet` has of all images."""
    reasons = np.zeros(pool.rows, np.int8)
    reasons[::2] = choose.NOT_DRAWN
    selected = Selected.__new__(Selected)
    vars(selected).update(choice=choose.Choice(reasons, None, pool.rows), scores=pool, model=Model)

    def work():
        counted = int(selected.per_class.sum())
        for start in range(0, pool.rows, 65_536):
            pool.at(np.arange(start, min(start + 65_536, pool.rows)))
        return {"selected": counted}

    return measured("merge", pool.rows, work)


class Model:
    """Stand-in for a teacher, with what the count needs."""

    classes = CLASSES


def child(what, folder, images):
    """Print one row as JSON."""
    folder, images = Path(folder), int(images)
    pool = stored_scores.PoolScores(folder, None, images, {})
    pool.at(np.arange(1))  # imports what it needs
    if what == "check":
        row = check_row(folder, images)
    elif what == "merge":
        row = merge_row(pool)
    else:
        name, _, memory = what.partition("-")
        row = choice_row(name, pool, bool(memory))
    print(json.dumps(row))


def main():
    if len(sys.argv) == 5 and sys.argv[1] == "child":
        return child(*sys.argv[2:])
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    images = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000_000
    tenth = min(images, stored_scores.PART_ROWS * max(1, images // (10 * stored_scores.PART_ROWS)))  # whole files
    rows = []
    with tempfile.TemporaryDirectory(dir=Path(sys.argv[1]).resolve().parent) as folder:
        seconds, used, on_disk = write_pool(Path(folder), images)
        times = {"seconds": seconds, "cpu_seconds": used}
        rows.append({"what": "scores written", "images": images, **times, "bytes_on_disk": on_disk})
        print(rows[-1], flush=True)
        of_all = [("check", images), ("threshold", images), ("statistics", images), ("merge", images)]
        of_tenth = [(name + way, tenth) for name in ("threshold", "statistics") for way in ("", "-memory")]
        for what, count in [*of_all, *of_tenth]:
            command = [sys.executable, __file__, "child", what, folder, str(count)]
            rows.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
            print(rows[-1], flush=True)
    same = {row["sha256"] for row in rows[5:7]}, {row["sha256"] for row in rows[7:9]}
    if any(len(of) != 1 for of in same):
        sys.exit("the two ways chose other images")
    measured_on = machine(resolve_place("cpu", "auto").device)
    result = {"command": "benchmarks/speed/choosing.py", "date": str(date.today()), **measured_on}
    Path(sys.argv[1]).write_text(json.dumps({**result, "rows": rows}, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
