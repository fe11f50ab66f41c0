"""`dfkd select` against a bare loop that only runs the same teacher on tensors in memory, in one run on one machine.

    DFKD_DATA=data DFKD_TEACHERS=../shared/teachers python benchmarks/speed/selecting.py OUT.json [IMAGES [JPEGS]]
    python benchmarks/speed/selecting.py OUT.json IMAGES JPEGS TEACHER     another network, of random weights

IMAGES (8,192) is the size of raw pools of 32 pixels. JPEGS (384) is the number of JPEG files in a folder, for a teacher
of 224 pixels. For JPEG files, decoding overlaps with the teacher. `bare` is the slower of the teacher alone and the
decoding alone. `of_both_after_another` compares with the sum of both times, which is the least time if both use all
cores. Rounds alternate, so that a slow minute of the machine affects all. The script prints medians.

The name is not `select.py`, because that would shadow Python's own module for scripts in this folder.
"""

import os
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from ratios import images, report, row, seconds, untrained
from safetensors.torch import save_file
from torchvision.models import resnet18

from dfkd.config import SelectConfig
from dfkd.data import open_pool
from dfkd.models.classifier import Classifier
from dfkd.models.load import load_model
from dfkd.select import stage as select
from dfkd.system.device import resolve_place

RAW = {
    "ResNet-20 of width 32": ("cifar_resnet:depth=20,width=32@{}/cifar10_resnet20_w32_train40k.pt", "cifar10"),
    "ResNet-56": ("cifar_resnet:depth=56@{}/cifar10_resnet56.th", "imagenet"),
}
ROUNDS, BATCH, JPEG_BATCH, JPEG_SIDE = 3, 256, 64, 224
DEFAULTS = (8_192, 384)


def command(folder, teacher, normalize, pool, **options):
    """Return a function that selects half of the pool into a new folder, with no scores cached and without imports."""
    number = len(list(folder.glob("cache*")))
    cache = folder / f"cache{number}"
    cache.mkdir()
    given = {"filter": "none", "pool": (str(pool),), "out": str(folder / f"selection{number}"), **options}
    config = SelectConfig(teacher=teacher, normalize=normalize, **given)

    def run():
        os.environ["DFKD_CACHE"] = str(cache)
        select.run(config)

    return run


def measure_raw(folder, name, teacher, normalize, count):
    """Return images per second of the whole command and of the teacher alone, for 32-pixel images in one file."""
    pool = images(count)
    np.savez(folder / "pool.npz", images=pool)
    model = Classifier(load_model(teacher, normalize=normalize), resolve_place("auto", "auto"))
    views = model.preprocess(torch.from_numpy(pool)).split(BATCH)
    rounds = []
    for _ in range(ROUNDS):
        ours = seconds(command(folder, teacher, normalize, folder / "pool.npz"))
        bare = seconds(lambda: [model.outputs(view) for view in views])
        rounds.append((len(pool) / ours, len(pool) / bare))
    return row(f"select, {name}, images/s", rounds)


def write_jpegs(folder, count):
    """Write JPEG files of 320x256 pixels: enlarged images with noise, so that decoding takes as long as for photos."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    small = images(count)
    for i in range(count):  # if there are fewer images, some repeat with other noise
        large = Image.fromarray(small[i % len(small)]).resize((320, 256), Image.Resampling.BICUBIC)
        noisy = np.asarray(large) + rng.normal(0, 4, (256, 320, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i:05d}.jpg", quality=90)


def measure_jpeg(folder, count):
    """Return images per second of the command, against the slower of teacher and decoding, each alone."""
    write_jpegs(folder / "photos", count)
    torch.manual_seed(0)
    save_file(resnet18().state_dict(), folder / "resnet18.safetensors")
    teacher = f"resnet18@{folder / 'resnet18.safetensors'}"
    model = Classifier(load_model(teacher, normalize="imagenet"), resolve_place("auto", "auto"))
    pool = open_pool([str(folder / "photos")], image_size=JPEG_SIDE, channels=3)
    views = [model.preprocess(torch.from_numpy(batch.pixels)) for _, batch in pool.batches(JPEG_BATCH)]
    options = {"image_size": JPEG_SIDE, "batch_size": JPEG_BATCH}
    rounds, alone = [], []
    for _ in range(ROUNDS):
        ours = seconds(command(folder, teacher, "imagenet", folder / "photos", **options))
        scored = seconds(lambda: [model.outputs(view) for view in views])
        decoded = seconds(lambda: [None for _ in pool.batches(JPEG_BATCH)])
        rounds.append((count / ours, count / max(scored, decoded)))
        alone.append((count / scored, count / decoded, (scored + decoded) / ours))
    scored, decoded, both = (round(median(values), 3) for values in zip(*alone, strict=True))
    found = {"teacher_alone": scored, "decoding_alone": decoded, "of_both_after_another": both}
    return row("select, ResNet-18, JPEG files of 224 pixels, images/s", rounds) | found


def main():
    if len(sys.argv) not in (2, 3, 4, 5):
        sys.exit(__doc__)
    sizes = [int(size) for size in sys.argv[2:4]]
    raw, jpegs = [*sizes, *DEFAULTS[len(sizes) :]]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if len(sys.argv) == 5:
            teachers = {sys.argv[4]: (untrained(sys.argv[4], work), "cifar10")}
        else:
            teachers = {n: (spec.format(os.environ["DFKD_TEACHERS"]), norm) for n, (spec, norm) in RAW.items()}
        np.savez(work / "few.npz", images=images(BATCH))
        command(work, *next(iter(teachers.values())), work / "few.npz")()  # imports
        rows = [measure_raw(work, name, *teacher, raw) for name, teacher in teachers.items()]
        if jpegs:
            rows.append(measure_jpeg(work, jpegs))
    report(Path(sys.argv[1]), "benchmarks/speed/selecting.py", rows)


if __name__ == "__main__":
    main()
