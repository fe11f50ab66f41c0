"""The stages of headline.sh, which describes them and their call. HEADLINE_* variables change their sizes.

The stages train a teacher from labels, and a student from the pool in a short run. The speed of this run decides how
many passes the time allows for the long run of the same student. Other short rows fill the rest of the time. Every
stage resumes after a kill, and writes its results to OUT when it ends.
"""

import csv
import json
import os
import shutil
import signal
import sys
import threading
import time
import tomllib
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import tomli_w
import train_teacher
from keep import keep

from dfkd.app import cli
from dfkd.formats.run_records import RESULT
from dfkd.system.console import say
from dfkd.system.files import make_folder, write_text

COMMAND = "benchmarks/quality/headline.sh"
DEFAULTS = {
    "TEACHER": "resnet34_small",
    "STUDENT": "resnet18_small",
    "TRAIN": "$DFKD_DATA/cifar10_train40k.npz",  # several DATA, separated by spaces
    "TEST": "$DFKD_DATA/cifar10_heldout10k.npz",
    "POOL": "$DFKD_DATA/pool_tiny_imagenet_32.npz",
    "TEACHER_EPOCHS": 40,
    "EPOCHS": 200,
    "SHORT_EPOCHS": 40,
    "COUNT": 50_000,
    "BATCH": 256,
    "LR": 0.2,
    "CHECKPOINT_EVERY": 5000,
    "MINUTES": 28.0,
    "WORK": "runs/headline",
}
SELECTIONS = {
    "random": {"method": "random", "filter": "none"},
    "most-confident": {"method": "confidence", "filter": "none"},
    "paper": {"preset": "paper"},
    "defaults": {},
}
BEGUN_RATE = 0.1  # of a student that begins with the teacher's layers
MAIN = {"defaults": {"samples": ["defaults"], "lr": BEGUN_RATE}}
SHORT = {  # plain losses first, because a row that fails ends the stage
    "random-kd": {"samples": ["random"], "loss": ["kd"], "init": "none"},
    "dfnd": {"samples": ["most-confident"], "loss": ["kd", "noise"], "init": "none"},
    **MAIN,
    "random": {"samples": ["random"], "lr": BEGUN_RATE},
    "paper": {"samples": ["paper"], "preset": "paper"},
}
SHORT_SEEDS = [0, 1, 2]
LAST = 30.0
"""Seconds before the end in which no work begins."""
SAFE = 0.75
"""Share of the passes that the time allows at the short run's mean rate.

The rate can fall within a run: on an H100 from 16,500 to 9,900 images a second (LOG.md). An unfinished run has no
result.
"""


def setting(name):
    """Return a size or a path: HEADLINE_NAME if it is set, with the type of the default."""
    return type(DEFAULTS[name])(os.environ.get(f"HEADLINE_{name}", DEFAULTS[name]))


def teacher(folder):
    """Train the teacher. Returns the exit status."""
    data = os.path.expandvars(setting("TRAIN")).split()
    options = {
        "--model": setting("TEACHER"),
        "--normalize": "cifar10",
        "--test": os.path.expandvars(setting("TEST")),
        "--epochs": setting("TEACHER_EPOCHS"),
        "--batch-size": setting("BATCH"),
        "--checkpoint-every": setting("CHECKPOINT_EVERY"),
        "--out": folder,
    }
    return train_teacher.main(["--data", *data, *(str(word) for option in options.items() for word in option)])


def students(folder, rows, epochs, seeds):
    """Select for the rows, distil and compare them, as a pipeline beside `folder`. Returns the exit status."""
    used = {name for row in rows.values() for name in row["samples"]}
    sizes = {"epochs": epochs, "batch-size": setting("BATCH")}  # in the rows: a preset of a row precedes [defaults]
    tables = {
        "out": str(folder),
        "seeds": seeds,
        "defaults": {
            "teacher": str(folder.parent / "teacher"),
            "pool": [setting("POOL")],
            "student": setting("STUDENT"),
            "lr": setting("LR"),
            "checkpoint-every": setting("CHECKPOINT_EVERY"),
            "test": setting("TEST"),
        },
        "select": {name: {"count": setting("COUNT"), **SELECTIONS[name]} for name in sorted(used)},
        "distill": {name: {**sizes, **row} for name, row in rows.items()},
    }
    file = folder.with_suffix(".toml")
    write_text(file, tomli_w.dumps(tables))
    return cli.main(["run", str(file)])


def passes(folder, first, left):
    """Return the passes of the student in `folder`: those that it began with, or those that fit into the time left."""
    (name,) = MAIN
    file = folder.with_suffix(".toml")
    if file.exists():
        return tomllib.loads(file.read_text(encoding="utf-8"))["distill"][name]["epochs"]
    result = json.loads((first / "runs" / f"{name}-seed0" / RESULT).read_text(encoding="utf-8"))
    seconds = result["seconds"] / setting("SHORT_EPOCHS")
    return min(setting("EPOCHS"), int(SAFE * (left - LAST) / seconds))


def compare(folder):
    """Compare the complete runs. Returns the exit status, which is not 0 if there are none."""
    complete = sorted(str(result.parent) for result in folder.glob(f"runs/*/{RESULT}"))
    return cli.main(["compare", *complete, "--out", str(folder / "report.html")])


@contextmanager
def deadline(seconds):
    """Stop a command of dfkd in the block after `seconds`, as `kill` would.

    Yields an event that tells whether this happened.
    """
    told = threading.Event()

    def tell():
        told.set()
        os.kill(os.getpid(), signal.SIGTERM)

    timer = threading.Timer(seconds, tell)
    timer.start()
    try:
        yield told
    finally:
        timer.cancel()


def timed(out, name, work):
    """Run a stage and append its seconds to OUT/headline-times.csv. Returns its exit status."""
    say(f"stage {name}")
    started = time.monotonic()
    status = work()
    seconds, ended = f"{time.monotonic() - started:.1f}", datetime.now(UTC).isoformat(timespec="seconds")
    with (out / "headline-times.csv").open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("stage", "seconds", "status", "ended")] if file.tell() == 0 else [])
        writer.writerow((name, seconds, status, ended))
    say(f"stage {name}: {seconds} s, status {status}")
    return status


def until(end, out, name, folder, rows, epochs, seeds):
    """Run a stage of students until the time is up, and report the complete runs. Returns the exit status."""
    with deadline(max(0, end - time.monotonic())) as up:
        status = timed(out, name, lambda: students(folder, rows, epochs, seeds))
    if up.is_set() and any(folder.glob(f"runs/*/{RESULT}")):
        status = compare(folder)
    return status


def main():
    """Run all stages. Returns the exit status of the first that failed; without the long run, the others still run."""
    end = time.monotonic() + 60 * setting("MINUTES")
    work, out = Path(setting("WORK")), Path(os.environ.get("OUT", "out"))
    for folder in (work, out):
        make_folder(folder)
    student, short = work / "student", work / "short"
    if status := timed(out, "teacher", lambda: teacher(work / "teacher")):
        return status
    shutil.copyfile(work / "teacher" / RESULT, out / "headline-teacher.json")
    if status := timed(out, "first", lambda: students(short, MAIN, setting("SHORT_EPOCHS"), [0])):
        return status
    if not (status := compare(short)):  # includes rows of an earlier call
        keep(short / "report.csv", out / "headline-short.csv", COMMAND)
    left = end - time.monotonic()
    count = passes(student, short, left)
    if left < LAST or count < min(setting("EPOCHS"), setting("SHORT_EPOCHS")):
        say(f"the long run is left out: {max(0, left):.0f} s allow {max(0, count)} passes")
    elif not (status := until(end, out, "student", student, MAIN, count, [0])):
        keep(student / "report.csv", out / "headline.csv", COMMAND)
    if end - time.monotonic() < LAST or status >= signal.SIGINT + 128:
        return status
    if not (failed := until(end, out, "short", short, SHORT, setting("SHORT_EPOCHS"), SHORT_SEEDS)):
        keep(short / "report.csv", out / "headline-short.csv", COMMAND)
    return status or failed


if __name__ == "__main__":
    sys.exit(main())
