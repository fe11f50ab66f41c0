"""`dfkd select` and a step of `dfkd distill` against bare loops that only compute, in one run on one machine.

    DFKD_DATA=data DFKD_TEACHERS=../shared/teachers python benchmarks/speed/bare_loops.py OUT.json

The bare forward has its pixels normalized and in memory; the bare step has a ready batch, the same two networks, KL
alone and the same optimizer. Rounds alternate, so that a slow minute of the machine falls on both; medians are shown.
"""

import json
import os
import sys
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from ratios import row, seconds

from dfkd.config import DistillConfig, SelectConfig
from dfkd.device import machine, resolve_place
from dfkd.distill.prepare import prepare
from dfkd.models.load import load_model
from dfkd.select import stage as select
from dfkd.teacher import Classifier

TEACHER = "cifar_resnet:depth=20,width=32@{}/cifar10_resnet20_w32_train40k.pt"
STUDENT = "cifar_resnet:depth=20"
IMAGES, BATCH, STEPS, ROUNDS = 16_384, 256, 20, 5
LOSSES = {"kd": ("kd",), "kd explicit relation": ("kd", "explicit:0.5", "relation:1")}


def measure_select(folder, teacher):
    """Images a second of the whole command (without imports) and of the teacher alone."""
    pool = np.load(Path(os.environ["DFKD_DATA"]) / "pool_tiny_imagenet_32.npz", mmap_mode="r")["images"][:IMAGES]
    np.savez(folder / "pool.npz", images=pool)
    model = Classifier(load_model(teacher, normalize="cifar10"), resolve_place("auto", "auto"))
    views = model.view(torch.from_numpy(pool)).split(BATCH)
    rounds = []
    for number in range(ROUNDS):
        os.environ["DFKD_CACHE"] = str(folder / f"cache{number}")  # every round scores anew
        config = SelectConfig(
            teacher=teacher,
            normalize="cifar10",
            pool=(str(folder / "pool.npz"),),
            out=str(folder / f"selection{number}"),
        )
        command = seconds(lambda config=config: select.run(config))
        bare = seconds(lambda: [model.outputs(view) for view in views])
        rounds.append((IMAGES / command, IMAGES / bare))
    return row("select, images/s", rounds), folder / "selection0"


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
        first, samples = measure_select(Path(folder), teacher)
        rows = [first, *(measure_distill(samples, teacher, loss) for loss in LOSSES)]
    for r in rows:
        print(f"{r['what']:<40}{r['dfkd']:>10.1f}{r['bare']:>10.1f}{r['ratio']:>8.3f}")
    measured_on = machine(resolve_place("auto", "auto").device)
    result = {"command": "benchmarks/speed/bare_loops.py", "date": str(date.today()), **measured_on, "rows": rows}
    out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
