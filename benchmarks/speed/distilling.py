"""A step of `dfkd distill` against bare loops that only compute, in one run on one machine.

    DFKD_DATA=data DFKD_TEACHERS=teachers python benchmarks/speed/distilling.py OUT.json [STEPS]
    python benchmarks/speed/distilling.py OUT.json STEPS TEACHER STUDENT        names of networks: random weights
    DFKD_PHOTOS=photos python benchmarks/speed/distilling.py OUT.json STEPS photos

A bare step has a ready batch, the same two networks, the same losses and the same optimizer. It lacks the rest of a
training: images, views, schedule, metrics. With kept answers (`--teacher-views`) it has ready logits and no teacher.
The rows that end in "against a step of kd" show the cost of other losses, and the gain of kept answers. Their bare step
is always plain KL with the teacher. Rounds alternate, so that a slow minute of the machine affects both. The script
prints medians. `selecting.py` measures `dfkd select`.

With `photos` the shards hold JPEG files of 500x400 pixels. Random windows of them are decoded to 224 pixels. `bare` is
then the slower of the bare step and the decoding of its windows, each alone on all cores. `of_both_after_another`
compares with the sum of both times, which is the least time if both use all cores. In the rows against a DataLoader,
Pillow and torchvision's transforms v2 feed the same step from one worker per core. The rows of views have no networks:
images are decoded, mirrored and normalized.
"""

import os
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch.nn.functional as F
from ratios import images, loader, report, row, seconds, untrained, write_photos
from torchvision.transforms import v2

from dfkd.config import DistillConfig, SelectConfig
from dfkd.data.images.frame import Crops
from dfkd.distill.prepare import prepare
from dfkd.formats.shards import Shards
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
SIDE, PHOTO_BATCH = 224, 32
PHOTO_NETWORKS = ("mobilenet_v3_small", "ratios.Strided")
"""Each is teacher and student: with the one the networks take longer than decoding, with the other they do not."""


def make_selection(folder, teacher, pool=None, **options):
    """Make a selection to learn from, of raw images if no pool is given. Returns its folder."""
    if pool is None:
        pool = folder / "pool.npz"
        np.savez(pool, images=images(IMAGES))
    os.environ["DFKD_CACHE"] = str(folder / "cache")
    out = folder / f"selection{len(list(folder.glob('selection*')))}"
    given = {"normalize": "cifar10", "filter": "none", "pool": (str(pool),), "out": str(out), **options}
    select.run(SelectConfig(teacher=teacher, **given))
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


def measure_photos(folder, name, steps):
    """Steps a second from encoded shards, against the slower of the bare step and decoding, and a DataLoader."""
    photos, teacher = folder / "photos", untrained(name, folder)
    options = {"normalize": "imagenet", "image_size": SIDE}
    count = steps * PHOTO_BATCH
    samples = make_selection(folder, teacher, photos, **options, method="random", count=count, batch_size=PHOTO_BATCH)
    trainer = prepared_trainer(samples, teacher, name, {"loss": ("kd",), "batch_size": PHOTO_BATCH, **options})
    source, step = trainer.source, bare_step(trainer)
    augment = [v2.RandomResizedCrop(SIDE, scale=(trainer.plan.crop_area, 1)), v2.RandomHorizontalFlip()]
    files = loader(photos, PHOTO_BATCH, augment, shuffle=True, drop_last=True)

    shards, crops = Shards(samples), Crops(trainer.plan.crop_area, seed=0)

    def decoded():
        for start in range(0, count, PHOTO_BATCH):
            shards.pixels(np.arange(start, start + PHOTO_BATCH), crops.at(start, PHOTO_BATCH))

    def views():
        for _ in range(steps):
            trainer.augment(source.sample(PHOTO_BATCH))

    def engineers(step):
        for _ in files:
            step()

    ways = {
        "ours": lambda: [trainer.advance() for _ in range(steps)],
        "bare": lambda: [step() for _ in range(steps)],
        "decoding": decoded,
        "views": views,
        "loader": lambda: engineers(step),
        "loaded": lambda: engineers(lambda: None),
    }
    taken = [{way: seconds(run) / steps for way, run in ways.items()} for _ in range(ROUNDS + 1)][1:]
    what = f"distill photographs of {SIDE} pixels, {name}"
    apart = {
        "bare_alone": median(1 / t["bare"] for t in taken),
        "decoding_alone": median(1 / t["decoding"] for t in taken),
        "of_both_after_another": median((t["bare"] + t["decoding"]) / t["ours"] for t in taken),
    }
    best = row(f"{what}, steps/s", [(1 / t["ours"], 1 / max(t["bare"], t["decoding"])) for t in taken])
    return [
        best | {way: round(value, 3) for way, value in apart.items()},
        row(f"{what}, against a DataLoader", [(1 / t["ours"], 1 / t["loader"]) for t in taken]),
        row(f"{what}, views alone, against decoding", [(1 / t["views"], 1 / t["decoding"]) for t in taken]),
        row(f"{what}, views alone, against a DataLoader", [(1 / t["views"], 1 / t["loaded"]) for t in taken]),
    ]


def main():
    of_photos = sys.argv[3:] == ["photos"]
    if len(sys.argv) not in (2, 3, 5) and not of_photos:
        sys.exit(__doc__)
    out, steps = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else STEPS
    if of_photos:
        with tempfile.TemporaryDirectory() as folder:
            write_photos(Path(folder) / "photos", steps * PHOTO_BATCH)
            rows = [r for name in PHOTO_NETWORKS for r in measure_photos(Path(folder), name, steps)]
        report(out, "benchmarks/speed/distilling.py", rows)
        return
    with tempfile.TemporaryDirectory() as folder:
        named = len(sys.argv) == 5
        teacher = untrained(sys.argv[3], Path(folder)) if named else TEACHER.format(os.environ["DFKD_TEACHERS"])
        student = sys.argv[4] if named else STUDENT
        samples = make_selection(Path(folder), teacher)
        rows = [r for name in LOSSES for r in measure(samples, teacher, student, name, steps)]
    report(out, "benchmarks/speed/distilling.py", rows)


if __name__ == "__main__":
    main()
