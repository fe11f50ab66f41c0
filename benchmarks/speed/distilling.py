"""A step of `dfkd distill` against bare loops that only compute, in one run on one machine.

    DFKD_DATA=data DFKD_TEACHERS=../shared/teachers python benchmarks/speed/distilling.py OUT.json [STEPS]
    python benchmarks/speed/distilling.py OUT.json STEPS TEACHER STUDENT        names of networks: random weights

A bare step has a ready batch, the same two networks, the same losses and the same optimizer. It lacks the rest of a
training: images, views, schedule, metrics. With kept answers (`--teacher-views`) it has ready logits and no teacher.
The rows that end in "against a step of kd" show the cost of other losses, and the gain of kept answers. Their bare step
is always plain KL with the teacher. Rounds alternate, so that a slow minute of the machine affects both. The script
prints medians. `selecting.py` measures `dfkd select`.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from ratios import images, report, row, seconds, untrained

from dfkd.config import DistillConfig, SelectConfig
from dfkd.distill.prepare import prepare
from dfkd.select import stage as select
from dfkd.training.optim import make_optimizer, set_rate

TEACHER = "cifar_resnet:depth=20,width=32@{}/cifar10_resnet20_w32_train40k.pt"
STUDENT = "cifar_resnet:depth=20"
IMAGES, STEPS, ROUNDS = 2_048, 10, 5
LOSSES = {
    "kd": {"loss": ("kd",)},
    "kd ofd": {"loss": ("kd", "ofd")},
    "kd explicit relation": {"loss": ("kd", "explicit:0.5", "relation:1")},
    "kd, kept answers": {"loss": ("kd",), "teacher_views": 1},
}


def make_selection(folder, teacher):
    """Make a selection to learn from. Returns its folder."""
    np.savez(folder / "pool.npz", images=images(IMAGES))
    os.environ["DFKD_CACHE"] = str(folder / "cache")
    out = folder / "selection"
    options = {"pool": (str(folder / "pool.npz"),), "filter": "none", "out": str(out)}
    select.run(SelectConfig(teacher=teacher, normalize="cifar10", **options))
    return out


def prepared_trainer(samples, teacher, student, options):
    """Return a trainer in training mode, with kept answers if the options request them."""
    config = DistillConfig(teacher=teacher, student=student, samples=(str(samples),), out="", init="none", **options)
    distillation = prepare(config, config.teacher, config.student, None)
    distillation.trainer.begin()
    return distillation.trainer


def bare_step(trainer, objective=None):
    """Return a function that runs forward, backward and optimizer step only.

    The loss is KL at temperature 4, or all losses of `objective` on all outputs.
    """
    batch = trainer.source.sample(trainer.plan.batch_size)
    view, theirs = trainer.lesson(batch)
    network, place = trainer.student.module, trainer.place
    kept = trainer.recorded is not None
    optimizer = make_optimizer([network, *([objective] if objective else [])], "sgd", 5e-4)
    set_rate(optimizer, 1e-4)

    def step():
        target = theirs if kept else trainer.teach(view, batch)
        if objective:
            total, _ = objective(trainer.answer(view), target)
        else:
            with place.autocast():
                answer = network(view).float() / 4
            goal = (target.logits / 4).log_softmax(1)
            total = 16 * F.kl_div(answer.log_softmax(1), goal, reduction="batchmean", log_target=True)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return step


def measure(samples, teacher, student, name, steps):
    """Return rows of steps per second: the training loop against the same passes, and against those of plain KL."""
    trainer = prepared_trainer(samples, teacher, student, LOSSES[name])
    plain = bare_step(prepared_trainer(samples, teacher, student, LOSSES["kd"]))
    reads_features = bool(trainer.objective.beyond_logits)
    same = bare_step(trainer, trainer.objective if reads_features else None)
    rounds = []
    for _ in range(ROUNDS + 1):
        functions = (trainer.advance, same, plain)
        rounds.append([steps / seconds(lambda f=f: [f() for _ in range(steps)]) for f in functions])
    warm = rounds[1:]  # the first round is the warm-up
    rows = [row(f"distill {name}, steps/s", [(ours, bare) for ours, bare, _ in warm])]
    if name != "kd":
        rows.append(row(f"distill {name}, against a step of kd", [(ours, bare) for ours, _, bare in warm]))
    return rows


def main():
    if len(sys.argv) not in (2, 3, 5):
        sys.exit(__doc__)
    out, steps = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else STEPS
    with tempfile.TemporaryDirectory() as folder:
        named = len(sys.argv) == 5
        teacher = untrained(sys.argv[3], Path(folder)) if named else TEACHER.format(os.environ["DFKD_TEACHERS"])
        student = sys.argv[4] if named else STUDENT
        samples = make_selection(Path(folder), teacher)
        rows = [r for name in LOSSES for r in measure(samples, teacher, student, name, steps)]
    report(out, "benchmarks/speed/distilling.py", rows)


if __name__ == "__main__":
    main()
