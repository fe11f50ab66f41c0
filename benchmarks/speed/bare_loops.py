"""A step of `dfkd distill` against bare loops that only compute, in one run on one machine.

    DFKD_DATA=data DFKD_TEACHERS=../shared/teachers python benchmarks/speed/bare_loops.py OUT.json

The bare step has a ready batch, the same two networks, KL alone and the same optimizer. Rounds alternate, so that a
slow minute of the machine falls on both; medians are shown. `dfkd select` is measured by `selecting.py`.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from ratios import report, row, seconds

from dfkd.config import DistillConfig, SelectConfig
from dfkd.distill.prepare import prepare
from dfkd.select import stage as select

TEACHER = "cifar_resnet:depth=20,width=32@{}/cifar10_resnet20_w32_train40k.pt"
STUDENT = "cifar_resnet:depth=20"
IMAGES, STEPS, ROUNDS = 2_048, 20, 5
LOSSES = {"kd": ("kd",), "kd explicit relation": ("kd", "explicit:0.5", "relation:1")}


def make_selection(folder, teacher):
    """A selection to learn from; its folder."""
    pool = np.load(Path(os.environ["DFKD_DATA"]) / "pool_tiny_imagenet_32.npz", mmap_mode="r")["images"][:IMAGES]
    np.savez(folder / "pool.npz", images=pool)
    os.environ["DFKD_CACHE"] = str(folder / "cache")
    out = folder / "selection"
    select.run(SelectConfig(teacher=teacher, normalize="cifar10", pool=(str(folder / "pool.npz"),), out=str(out)))
    return out


def measure_distill(samples, teacher, loss):
    """Steps a second of the training loop and of a bare loop."""
    config = DistillConfig(teacher=teacher, student=STUDENT, samples=(str(samples),), out="", loss=LOSSES[loss])
    trainer = prepare(config).trainer
    place = trainer.place
    student = trainer.student.module.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4, momentum=0.9, nesterov=True, fused=True)
    view = trainer.view(trainer.source.sample(trainer.plan.batch_size))
    bare_teacher = trainer.teacher.model.module

    def bare_step():
        with torch.no_grad(), place.autocast():
            target = bare_teacher(view).float() / 4
        with place.autocast():
            answer = student(view).float() / 4
        optimizer.zero_grad()
        F.kl_div(answer.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True).backward()
        optimizer.step()

    rounds = []
    for _ in range(ROUNDS + 1):
        ours, bare = (seconds(lambda f=f: [f() for _ in range(STEPS)]) for f in (trainer.advance, bare_step))
        rounds.append((STEPS / ours, STEPS / bare))
    return row(f"distill {loss}, steps/s", rounds[1:])  # the first one warms up


def main():
    out = Path(sys.argv[1])
    teacher = TEACHER.format(os.environ["DFKD_TEACHERS"])
    with tempfile.TemporaryDirectory() as folder:
        samples = make_selection(Path(folder), teacher)
        rows = [measure_distill(samples, teacher, loss) for loss in LOSSES]
    report(out, "benchmarks/speed/bare_loops.py", rows)


if __name__ == "__main__":
    main()
