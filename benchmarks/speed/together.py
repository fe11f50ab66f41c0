"""Several students in one command against one command each: processor time of the steps, as a ratio.

    python benchmarks/speed/together.py OUT.json [STEPS] [ROUNDS]      default: 4 steps, 3 rounds

The students of one teacher differ in the seed of their weights. They learn on batches of 128 noise images of 32 pixels.
Rounds of both alternate in one process with one thread. The script prints the medians of the rounds, and of their
ratios. `dfkd` is the time of the students together, `bare` the sum of each alone, both in processor seconds per step.
The last row is that of two students that learn from each other.
"""

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from distilling import make_selection
from ratios import report, row, untrained

from dfkd.config import DistillConfig
from dfkd.distill.cohort import Cohort
from dfkd.distill.prepare import prepare
from dfkd.system.random_state import Turn

TEACHER = "cifar_resnet:depth=20,width=32,num_classes=10,in_channels=3"
STUDENT = "cifar_resnet:depth=20"
CASES = (("kd ofd", 1), ("kd ofd", 2), ("kd ofd", 3), ("kd", 3), ("kd dml:hard=0", 2))
"""Losses, and number of students."""


def trainers_of(config, count):
    """Return trainers of students that differ in their weights, and the random state of each."""
    found, turns = [], []
    for seed in range(count):
        own = replace(config, student_seed=seed)
        found.append(prepare(own, own.teacher, own.student, None, peers=count - 1).trainer)
        turns.append(Turn(found[-1].place.device))
    return found, turns


def seconds(learners, steps):
    """Return the processor seconds of a step of all learners."""
    started = time.process_time()
    for learner in learners:
        for _ in range(steps):
            learner.advance()
    return (time.process_time() - started) / steps


def measured(config, losses, count, steps, rounds):
    """Return a row: the students together, and each alone.

    Students that learn from each other are alone without `dml`.
    """
    together = Cohort(*trainers_of(replace(config, loss=tuple(losses.split())), count))
    alone_with = [loss for loss in losses.split() if not loss.startswith("dml")]
    alone, _ = trainers_of(replace(config, loss=tuple(alone_with)), count)
    for learner in (together, *alone):
        learner.begin()
        learner.advance()
    pairs = [(seconds([together], steps), seconds(alone, steps)) for _ in range(rounds)]
    return row(f"{losses}, {count} student{'s' if count > 1 else ''}, processor seconds a step", pairs)


def main():
    if not 2 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    steps, rounds = (int(sys.argv[n]) if len(sys.argv) > n else default for n, default in ((2, 4), (3, 3)))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        teacher = untrained(TEACHER, Path(folder))
        samples = make_selection(Path(folder), teacher)
        config = DistillConfig(
            teacher=teacher, student=STUDENT, samples=(str(samples),), out="", init="none", steps=100_000,
            device="cpu",
        )  # fmt: skip
        rows = [measured(config, losses, count, steps, rounds) for losses, count in CASES]
    report(Path(sys.argv[1]), "benchmarks/speed/together.py", rows)


if __name__ == "__main__":
    main()
