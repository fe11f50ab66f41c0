"""Cost of logging in a training, and time of the pages of `compare` and `inspect`.

    python benchmarks/speed/pages.py OUT.json [PART...]      default: logging compare inspect

OUT keeps the rows of parts that are not measured.

Rows of `logging` have the processor time of writing one row of metrics, as a share of the 50 steps per row of the
default. The step is that of `kd` from a LeNet-5 to half of it, the fastest pair of networks here. `compare` reads 100
runs of 4,000 steps, 25 rows of 4 seeds. `inspect` reads a selection that `dfkd.select.selection_writer` wrote. Its
random images of 16 pixels are from a pool that is a quarter larger. Both are separate commands, imports included. Other
work on the machine changes `cpu_seconds` less than `seconds`.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np
import tomli_w
from distilling import make_selection, prepared_trainer
from ratios import untrained

from dfkd.app import cli
from dfkd.config import SelectConfig
from dfkd.config.stages.shared import Input
from dfkd.data import Images
from dfkd.formats.run_folder import Progress
from dfkd.models.load import load_model
from dfkd.select.choose import NOT_ADMITTED, NOT_DRAWN, SELECTED, Choice
from dfkd.select.methods import ImageScores
from dfkd.select.selected import Selected
from dfkd.select.selection_writer import write
from dfkd.system.checksums import sealed, unsealed
from dfkd.system.device import machine, resolve_place
from dfkd.system.files import partial_folder
from dfkd.training.log import logged

TEACHER, STUDENT = "lenet5", "lenet5_half"
LOGGERS = {"metrics.jsonl": (), "tensorboard": ("tensorboard",), "pictures": ("pictures",)}
STEPS, EVERY, LOGGED = 30, 50, 40
IMAGES = 1_000_000
SIDE = 16
RUNS, SEEDS, CLASSES = 100, 4, 100


class MadeUp:
    """A pool that needs no storage, and a teacher's scores and logits of its images."""

    encoded, image_size, channels = False, SIDE, 3

    def __init__(self, images):
        self.problems = {}
        self._images, self._block = (
            images,
            np.random.default_rng(0).integers(0, 256, (4096, SIDE, SIDE, 3), dtype=np.uint8),
        )

    def __len__(self):
        return self._images

    def origins(self, indices):
        return [f"pool.npz#{index}" for index in indices]

    def images(self, indices):
        return Images(self._block[indices % 4096], {})

    def at(self, indices):
        share = (indices * 7919 % 10_007 / 10_007).astype(np.float32)
        classes = (indices * 31 % CLASSES).astype(np.int32)
        return ImageScores(0.01 + 0.98 * share, 1 - share, classes, 1 / (0.1 + share))

    def logits(self, indices):
        spread = np.random.default_rng(len(indices)).normal(size=(len(indices), CLASSES)).astype(np.float16)
        spread[np.arange(len(indices)), indices * 31 % CLASSES] += 8
        return spread


def write_selection(folder, count):
    """Write a selection of `count` images of a pool that is a quarter larger, by the writer of dfkd.

    Returns its folder.
    """
    images = count + count // 4
    reasons = np.full(images, SELECTED, np.int8)
    reasons[::5] = NOT_ADMITTED
    reasons[5::10] = NOT_DRAWN
    model = load_model("cifar_resnet:depth=8", Input("cifar10"), classes=CLASSES, channels=3)
    pool, out = MadeUp(images), folder / "selection"
    config = SelectConfig(teacher="cifar_resnet:depth=8@t.pt", pool=("pool.npz",), out=str(out))
    options = {"method": "threshold", "count": count, "balance": "class", "class_dropping": 0.05, "deduplicate": None}
    content = {
        "teacher": {"architecture": model.architecture, "weights": "0"},
        "preprocess": {"normalize": "cifar10", "image_size": SIDE, "channels": 3},
        "options": options,
        "seed": 0,
    }
    partial_folder(out).mkdir()
    write(partial_folder(out), out, Selected(config, model, pool, pool, Choice(reasons, 0.2, count), content))
    return out


def write_runs(folder):
    """Write many runs: copies of one, with other names, seeds, figures and curves. Returns their folders."""
    teacher = untrained(TEACHER, folder)
    samples = make_selection(folder, teacher)
    with np.load(folder / "pool.npz") as pool:
        np.savez(folder / "test.npz", images=pool["images"][:100], labels=np.arange(100) % 10)
    given = ["--teacher", teacher, "--student", STUDENT, "--samples", str(samples), "--init", "none"]
    first = folder / "first"
    status = cli.main(["distill", *given, "--steps", "2", "--test", str(folder / "test.npz"), "--out", str(first)])
    assert status == 0
    metrics = json.loads((first / "metrics.jsonl").read_text().splitlines()[-1])
    result = unsealed(json.loads((first / "result.json").read_text()))
    rng, runs = np.random.default_rng(0), []
    for number in range(RUNS):
        run, seed = folder / f"run-{number}", number % SEEDS
        shutil.copytree(first, run)
        config = unsealed(read_toml(run / "config.toml"))
        config["content"]["options"] |= {"seed": seed, "peak_rate": 0.1 * (number // SEEDS)}
        (run / "config.toml").write_text(tomli_w.dumps(sealed(config)))
        rows = [{**metrics, "step": step, "loss": 5 / step + rng.random()} for step in range(EVERY, 4001, EVERY)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        own = {"name": f"row {number // SEEDS}", "seed": seed, "top1": rng.random(), "seconds": 100 * rng.random()}
        own |= {"per_class": rng.random(CLASSES).tolist(), "teacher_per_class": [0.9] * CLASSES, "files": {}}
        (run / "result.json").write_text(json.dumps(sealed({**result, **own})))
        runs.append(str(run))
    return runs


def read_toml(path):
    """Return the tables of a TOML file."""
    import tomllib

    return tomllib.loads(path.read_text(encoding="utf-8"))


def timed(*command):
    """Return wall and processor seconds of a command of dfkd, and its largest memory, which it says itself.

    What the system counts of a child begins with the memory of its parent.
    """
    code = (
        "import re, sys; from dfkd.app import cli; status = cli.main(sys.argv[1:]);"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]); sys.exit(status)"
    )
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *command, "--quiet"], check=True, stdout=subprocess.PIPE)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = 1024 * int(done.stdout.split()[-1])
    return {"seconds": round(seconds, 2), "cpu_seconds": round(used, 2), "peak_bytes": peak}


def logging_rows(folder):
    """Return the share of a training's time that rows of metrics take."""
    teacher = untrained(TEACHER, folder)
    trainer = prepared_trainer(make_selection(folder, teacher), teacher, STUDENT, {"loss": ("kd",)})
    trainer.advance()
    started = time.process_time()
    for _ in range(STEPS):
        metrics = trainer.advance()
    step = (time.process_time() - started) / STEPS
    found = []
    for name, loggers in LOGGERS.items():
        record = Progress(folder / name, "")
        record.folder.mkdir()
        seconds = []
        steps = LOGGED * EVERY
        with logged(loggers, record, record.folder, {"steps": steps}, (steps, EVERY), trainer.pictures):
            for number in range(1, LOGGED + 1):
                started = time.process_time()
                row = {key: float(value) for key, value in metrics.items()}
                record.log({"step": number * EVERY, **row, "images_per_second": 1.0})
                seconds.append(time.process_time() - started)
        mean = sum(seconds[1:]) / len(seconds[1:])  # the first row imports the library
        figures = {"step_seconds": round(step, 5), "row_seconds": round(mean, 6), "median": round(median(seconds), 6)}
        found.append({"what": f"logging, {name}", **figures, "share": round(mean / (EVERY * step), 5)})
    return found


def compare_rows(folder):
    """Return the cost of comparing many runs."""
    page = folder / "report.html"
    row = timed("compare", *write_runs(folder), "--out", str(page))
    return [{"what": f"compare, {RUNS} runs", **row, "page_bytes": page.stat().st_size}]


def inspect_rows(folder):
    """Return the cost of the page of a large selection."""
    os.environ["DFKD_CACHE"] = str(folder)
    page = folder / "selection.html"
    row = timed("inspect", str(write_selection(folder, IMAGES)), "--out", str(page))
    return [{"what": f"inspect, {IMAGES:,} images", **row, "page_bytes": page.stat().st_size}]


PARTS = {"logging": logging_rows, "compare": compare_rows, "inspect": inspect_rows}


def main():
    if len(sys.argv) < 2 or not {*sys.argv[2:]} <= PARTS.keys():
        sys.exit(__doc__)
    out, parts = Path(sys.argv[1]), sys.argv[2:] or [*PARTS]
    before = json.loads(out.read_text())["rows"] if out.exists() else []
    rows = [row for row in before if row["what"].partition(",")[0] not in parts]
    measured_on = machine(resolve_place("cpu", "auto").device)
    for part in parts:
        with tempfile.TemporaryDirectory() as folder:
            found = PARTS[part](Path(folder))
        rows += [{**row, "date": str(date.today()), **measured_on} for row in found]
        print(*found, sep="\n")
    out.write_text(json.dumps({"command": "benchmarks/speed/pages.py", "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
