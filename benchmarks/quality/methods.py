"""Selection methods on several pools, with all other options at their defaults.

    python benchmarks/quality/methods.py POOL OUT [ROW ...] [--steps N ...] [--seeds S ...] [--no-training]

POOL is heap-20, heap-2, long-tail or adversarial (written to DFKD_DATA/heaps by heaps.py), photos (only the
Tiny-ImageNet photos), or digits (the demo's heap, written to OUT). All but digits need DFKD_DATA and DFKD_TEACHERS. A
selection has 10,000 images, and 2,000 for heap-2 and digits. A ROW is a name of the table `ROWS` below: all methods of
`dfkd`, `clean`, `dfnd` and two more draws of `threshold`. It may also be any METHOD followed by further options:

    threshold:draw=random+balance=none+gamma=0.3
    my_methods.margin:power=2+deduplicate=0.99

OUT/POOL/methods.csv has a line for every run, and for every selection without a run:

    top1, agreement   of the student after the last step
    photos            share of the selected images that are photos
    kinds             number of selected images of each kind
    covered           number of predicted classes with at least a tenth of an equal share of the selected photos
    effective         exp of the entropy of the selected photos' classes: the number of classes, if they are even
    cost              seconds for 1,000 images of `dfkd select` without a cache and without a filter; the smaller of two
    seconds           of the training

methods.json has the command, the date and the machine. The table has every line of OUT, also from earlier commands. So
rows can be measured one by one, an interrupted command resumes, and several commands can share the work. --no-training
fills all columns except those of the students. This takes some 20 seconds per row, after one pass of the teacher.
"""

import argparse
import csv
import json
import os
import re
import shlex
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import tomli_w

import dfkd
from dfkd.app import cli, demo
from dfkd.app.pipeline_file import read_pipeline
from dfkd.config.stage_table import stage_of
from dfkd.data import open_pool
from dfkd.formats.run_records import RESULT, Result, read_result
from dfkd.select import methods
from dfkd.system.device import machine, resolve_place
from dfkd.system.errors import RequestError
from dfkd.system.files import replacing, write_json, write_text
from dfkd.system.text import aligned

ROWS = {
    "clean": "random",  # from the pool's photos only, as a perfect selection would give
    **{name: name for name in methods.__all__},
    "dfnd": "confidence",
    "threshold-random": "threshold:draw=random",
    "threshold-entropy": "threshold:draw=entropy",
}
DISTILL = {"dfnd": {"loss": ["kd", "ofd", "noise"]}}
"""Options of a row's student: DFND's noise matrix beside the default losses."""
HEAPS = ("heap-20", "heap-2", "adversarial")
"""Pools whose photos are also in a file of their own."""
POOLS = (*HEAPS, "long-tail", "photos", "digits")
COUNTS = {"heap-2": 2_000, "digits": demo.SELECTED}
COUNT, STEPS, DIGITS_STEPS = 10_000, (500, 2_000), (150,)
COST_IMAGES = 2_000
SIGNALED = 128
"""Exit statuses from here on say that a signal ended the pipeline."""
COLUMNS = (
    *("pool", "row", "method", "seed", "steps", "top1", "agreement", "photos", "kinds", "covered", "effective"),
    *("cost", "seconds"),
)


def cifar10(pool):
    """Return the options of all rows, the file of the pool's photos, and that of the kinds. A file may be None."""
    heaps = f"{os.environ.get('DFKD_DATA', 'data')}/heaps"
    options = {
        "teacher": "cifar_resnet:depth=20,width=32@$DFKD_TEACHERS/cifar10_resnet20_w32_train40k.pt",
        "normalize": "cifar10",
        "image_size": 32,
        "pool": [f"{heaps}/{pool}.npz" if pool != "photos" else "$DFKD_DATA/pool_tiny_imagenet_32.npz"],
        "student": "cifar_resnet:depth=20",
        "test": "$DFKD_DATA/cifar10_heldout10k.npz",
    }
    photos = f"{heaps}/{pool}-photos.npz" if pool in HEAPS else None
    return options, photos, f"{heaps}/{pool}-kinds.npz" if pool != "photos" else None


def digits(out):
    """Return the same for the demo's heap, which is made in `out`."""
    demo.prepare(out)
    kinds, photos = out / demo.KINDS, out / "photos.npz"
    if not photos.exists():
        with np.load(out / "pool.npz") as pool, np.load(kinds) as of:
            demo.save(photos, lambda: {"images": pool["images"][of["kind"] == 0]})
    return demo.options(out), str(photos), str(kinds)


def parsed(row):
    """Return the name of a row for its folder, and its options of `select`."""
    method, *more = ROWS.get(row, row).split("+")
    pairs = [text.partition("=") for text in more]
    if not all(key and value for key, _, value in pairs):
        raise RequestError(f"row {row!r} is not METHOD+option=value; the options are those of dfkd select")
    name = row if row in ROWS else re.sub(r"[^\w.]+", "-", row)
    return name, {"method": method} | {key.replace("_", "-"): typed(value) for key, _, value in pairs}


def typed(text):
    """Convert a text to a number if possible."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def cost(options, select):
    """Return the seconds for 1,000 images: the teacher's forward passes and the method, without cached scores."""
    size, (pool,) = options["image_size"], options["pool"]
    images = open_pool([os.path.expandvars(pool)], image_size=size, channels=3 if size == 32 else 1)
    pixels = images.images(np.arange(min(COST_IMAGES, len(images)))).pixels
    teacher = dfkd.Teacher(os.path.expandvars(options["teacher"]), normalize=options["normalize"], image_size=size)
    given = {key.replace("-", "_"): value for key, value in select.items() if key not in ("pool", "count")}
    keywords = given | {"filter": "none"}
    before, found = os.environ.get("DFKD_CACHE"), []
    try:
        for _ in range(2):
            with tempfile.TemporaryDirectory() as cache:
                os.environ["DFKD_CACHE"] = cache
                began = time.perf_counter()
                teacher.select(pixels, count=1, verbose=False, **keywords)
                found.append(time.perf_counter() - began)
    finally:
        os.environ.pop("DFKD_CACHE")
        os.environ.update({"DFKD_CACHE": before} if before is not None else {})
    return 1000 * min(found) / len(pixels)


def chosen(folder, kinds):
    """Return the columns about a selection that need no student."""
    table = pq.read_table(folder / "scores.parquet", columns=["reason", "prediction"])
    selected = table["reason"].to_numpy() == "selected"
    predictions, names, kind = table["prediction"].to_numpy()[selected], ["photo"], np.zeros(selected.sum(), int)
    if kinds is not None:
        with np.load(kinds) as of:
            names, kind = of["names"].tolist(), of["kind"][selected]
    counts = dict(zip(names, np.bincount(kind, minlength=len(names)).tolist(), strict=True))
    manifest = dfkd.open_selection(folder).manifest
    per_class = np.bincount(predictions[kind == 0], minlength=manifest["classes"])
    share = per_class[per_class > 0] / max(per_class.sum(), 1)
    return {
        "method": manifest["config"]["method"],
        "photos": round(counts["photo"] / len(kind), 4),
        "kinds": " ".join(f"{name}:{count}" for name, count in counts.items() if count),
        "covered": int((per_class >= 0.1 * per_class.sum() / len(per_class)).sum()) if len(share) else 0,
        "effective": round(float(np.exp(-(share * np.log(share)).sum())), 2) if len(share) else 0.0,
    }


def lines(pool, out, kinds, costs):
    """Yield a line for every run in `out`, and for every selection without one."""
    for folder in sorted((out / "samples").glob("*-seed*[0-9]")):
        row, _, seed = folder.name.rpartition("-seed")
        if not (folder / "manifest.json").exists():
            continue
        own = {"pool": pool, "row": row, "seed": int(seed), "cost": costs.get(row, "")}
        own |= chosen(folder, kinds if row != "clean" else None)
        named = re.compile(rf"{re.escape(row)}-\d+-seed{seed}")
        runs = [run for run in (out / "runs").glob(f"{row}-*") if named.fullmatch(run.name) and (run / RESULT).exists()]
        results = [read_result(run, Result) for run in runs]
        for result in sorted(results, key=lambda result: result.steps):
            figures = {name: round(getattr(result, name), 4) for name in ("top1", "agreement", "seconds")}
            yield own | figures | {"steps": result.steps}
        if not results:
            yield own


def write(table, target, command):
    """Write the table, and the command, date and machine beside it."""
    with replacing(target) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    place = resolve_place("auto", "auto")
    about = {"command": command, "date": str(date.today()), **machine(place.device), **place.describe()}
    write_json(target.with_suffix(".json"), about)


def summary(table):
    """Return the means over seeds as text: shorter runs first, then higher accuracy first."""
    groups = {}
    for line in table:
        groups.setdefault((line.get("steps", 0), line["row"]), []).append(line)

    def mean(of, name):
        return float(np.mean([line.get(name, 0) or 0 for line in of]))

    body = []
    for (steps, row), of in sorted(groups.items(), key=lambda item: (item[0][0], -mean(item[1], "top1"), item[0][1])):
        top1 = f"{100 * mean(of, 'top1'):.2f}" if steps else "-"
        if steps and len(of) > 1:
            top1 += f" ± {100 * np.std([line['top1'] for line in of], ddof=1):.2f}"
        holds = (f"{mean(of, 'photos'):.1%}", f"{mean(of, 'covered'):.1f}", f"{mean(of, 'effective'):.2f}")
        body.append([row, str(steps or "-"), str(len(of)), top1, *holds, f"{mean(of, 'cost'):.2f}"])
    return aligned(["row", "steps", "seeds", "top-1 %", "photos", "covered", "effective", "cost"], body)


def run(command, pool, out, rows, steps, seeds, training):
    """Run the incomplete rows as a pipeline, and write the table. Returns the exit status."""
    options, photos, kinds = digits(out / "data") if pool == "digits" else cifar10(pool)
    named = dict(parsed(row) for row in rows)
    if "clean" in named:
        if photos is None:
            raise RequestError(f"{pool} is photos alone: it has no row 'clean'")
        named["clean"]["pool"] = [photos]
    tables = {
        "out": str(out),
        "seeds": seeds,
        "defaults": options | {"count": COUNTS.get(pool, COUNT)},
        "select": named,
        "distill": {
            f"{name}-{number}": {"samples": [name], "steps": number} | DISTILL.get(name, {})
            for name in named
            for number in steps
        },
    }
    file = out / "methods.toml"
    write_text(file, tomli_w.dumps(tables))
    status = cli.main(["run", str(file)]) if training else selected(file)
    if status >= SIGNALED:
        return status
    measured = out / "cost.json"
    costs = json.loads(measured.read_text(encoding="utf-8")) if measured.exists() else {}
    for name, select in named.items():
        if name not in costs and any(out.glob(f"samples/{name}-seed*/manifest.json")):
            costs[name] = costs["random"] if name == "clean" and "random" in costs else round(cost(options, select), 3)
            write_json(measured, costs)
    table = [*lines(pool, out, kinds and Path(os.path.expandvars(kinds)), costs)]
    write(table, out / "methods.csv", command)
    print(f"{summary(table)}\n\nwrote {out / 'methods.csv'}")
    return status


def selected(file):
    """Make only the selections of a pipeline. Returns 2 if one was refused, else 0."""
    status = 0
    for selection in read_pipeline(file).selections:
        try:
            stage_of(selection).run(selection)
        except RequestError as error:
            print(f"methods.py: {Path(selection.out).name}: {error}", file=sys.stderr)
            status = 2
    return status


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", metavar="POOL", choices=POOLS)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("rows", metavar="ROW", nargs="*", help=f"one of {', '.join(ROWS)}, or METHOD+option=value")
    parser.add_argument("--steps", type=int, nargs="+", help="of the students (default: 500 2000; digits: 150)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--no-training", action="store_true", help="only select")
    args = parser.parse_args()
    rows = args.rows or [row for row in ROWS if row != "clean" or args.pool in (*HEAPS, "digits")]
    steps = args.steps or (DIGITS_STEPS if args.pool == "digits" else STEPS)
    try:
        words = ["OUT" if word == str(args.out) else word for word in sys.argv[1:]]
        command = f"python benchmarks/quality/methods.py {shlex.join(words)}"
        sys.exit(run(command, args.pool, args.out / args.pool, rows, steps, args.seeds, not args.no_training))
    except RequestError as error:
        sys.exit(f"methods.py: {error}")


if __name__ == "__main__":
    main()
