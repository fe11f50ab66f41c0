"""A training that torchrun starts, against the same command in one process; and the time lost by a killed process.

    python benchmarks/speed/machines.py OUT.json [STEPS] [ROUNDS]      default: 24 steps, 3 rounds

The first rows are images per second of the training loop, from metrics.jsonl without its first rows. They compare
torchrun with one process to no torchrun, each with one thread. They also compare two processes with one thread each to
one process with two threads. The teacher is a ResNet-8 of width 32, the student one of width 16, the losses are `kd`
and `kd ofd`. Rounds alternate. The script prints medians. The next row has the seconds from the kill of one of two
processes to the first step after the checkpoint. Beside it are the seconds from a start to the first step. The last row
has the seconds between two pieces of a pool that LeNet-5 scores. It compares one worker of Ray with one process without
Ray. The script needs `pip install '.[ray]'`.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from distilling import make_selection
from ratios import report, row, untrained

from dfkd.select.stored_scores import PART_ROWS

TEACHER = "cifar_resnet:depth=8,width=32,num_classes=10,in_channels=3"
STUDENT = "cifar_resnet:depth=8"
PYTHON = (sys.executable, "-m")
LAUNCHER = (*PYTHON, "torch.distributed.run", "--standalone", "--max-restarts", "2", "--nproc-per-node")
LOSSES = {"kd": ("kd",), "kd ofd": ("kd", "ofd")}
SCORER, SIDE, PIECES = "lenet5", 32, 5


def start(command, out, options, threads, processes=0):
    """Start a distillation, with torchrun unless `processes` is 0."""
    launcher = (*LAUNCHER, str(processes), "-m") if processes else PYTHON
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    log = out.with_suffix(".log").open("w")
    given = [*launcher, "dfkd", *map(str, (*command, "--out", out, *options))]
    return subprocess.Popen(given, env=environment, stdout=log, stderr=log)


def rows_of(out):
    """Return the rows of the metrics that are written so far."""
    file = out / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def rate(*given, **more):
    """Return the images per second of a whole training: the median of its rows, without the first two."""
    process, out = start(*given, **more), given[1]
    if process.wait():
        raise RuntimeError(out.with_suffix(".log").read_text())
    return median(r["images_per_second"] for r in rows_of(out)[2:])


def wait_for_step(out, step, process):
    """Wait until the first row after a step is written. Returns the time."""
    while not any(r["step"] > step for r in rows_of(out)):
        if process.poll() is not None:
            raise RuntimeError(out.with_suffix(".log").read_text())
        time.sleep(0.05)
    return time.perf_counter()


def restarted(command, out, options):
    """Return the seconds of a start and of a restart, each until the first step afterwards."""
    started = time.perf_counter()
    process = start(command, out, options, 1, processes=2)
    begun = wait_for_step(out, 0, process) - started
    wait_for_step(out, 12, process)  # the checkpoint of step 10 is written
    file = (out / "metrics.jsonl").stat().st_ino
    child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[-1])
    os.kill(child, signal.SIGKILL)
    killed = time.perf_counter()
    while (out / "metrics.jsonl").stat().st_ino == file:  # resuming drops rows and replaces the file
        if process.poll() is not None:
            raise RuntimeError(out.with_suffix(".log").read_text())
        time.sleep(0.02)
    again = wait_for_step(out, max((r["step"] for r in rows_of(out)), default=0), process) - killed
    process.terminate()
    process.wait()
    return begun, again


def made_pool(folder):
    """Write a pool of noise with several pieces. Returns its path."""
    shape = (PIECES * PART_ROWS, SIDE, SIDE, 3)
    np.savez(folder / "pieces.npz", images=np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    return folder / "pieces.npz"


def between_pieces(folder, name, teacher, pool, *more):
    """Return the median seconds from one piece of scores to the next, from the times of their files."""
    cache = folder / f"cache-{name}"
    command = (*PYTHON, "dfkd", "select", "--teacher", teacher, "--pool", pool, "--normalize", "0.5/0.5", *more)
    command += ("--filter", "none", "--method", "confidence", "--count", 100, "--out", folder / name)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DFKD_CACHE": str(cache)}
    subprocess.run([*map(str, command)], env=environment, check=True, capture_output=True)
    times = sorted(file.stat().st_mtime_ns for file in cache.rglob("scores-*.parquet"))
    assert len(times) == PIECES, times
    return median(np.diff(times)) / 1e9


def main():
    if not 2 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 24
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    rows = []
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top)
        teacher = untrained(TEACHER, folder)
        samples = make_selection(folder, teacher)
        command = ("distill", "--teacher", teacher, "--student", STUDENT, "--samples", samples)
        command += ("--init", "none", "--log-every", 3, "--device", "cpu")
        for name, losses in LOSSES.items():
            options = ("--steps", steps, "--loss", *losses)
            found = {"launched": [], "shared": []}
            for number in range(rounds):
                what = f"{name.replace(' ', '-')}-{number}"
                pairs = {"launched": ((1, 1), (1, 0)), "shared": ((1, 2), (2, 0))}
                for key, sides in pairs.items():
                    rates = [
                        rate(command, folder / f"{what}-{threads}-{processes}", options, threads, processes=processes)
                        for threads, processes in sides
                    ]
                    found[key].append(tuple(rates))
            rows.append(row(f"{name}, torchrun with one process; without torchrun, images/s", found["launched"]))
            rows.append(row(f"{name}, two processes of one thread; one of two, images/s", found["shared"]))
        options = ("--steps", 100_000, "--loss", "kd", "--log-every", 1, "--checkpoint-every", 10)
        times = [restarted(command, folder / f"killed{number}", options) for number in range(rounds)]
        rows.append(row("seconds to the first step after a kill; after a start", [(b, a) for a, b in times]))
        scorer, pool = untrained(SCORER, folder), made_pool(folder)
        pairs = []
        for number in range(rounds):
            shared = between_pieces(folder, f"ray{number}", scorer, pool, "--engine", "ray", "--workers", 1)
            pairs.append((shared, between_pieces(folder, f"alone{number}", scorer, pool)))
        rows.append(row(f"seconds a piece of {PART_ROWS:,} images, one worker of Ray; no Ray", pairs))
    report(Path(sys.argv[1]), "benchmarks/speed/machines.py", rows)


if __name__ == "__main__":
    main()
