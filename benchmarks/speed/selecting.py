"""`dfkd select` against a bare loop that only runs the same teacher on tensors in memory, in one run on one machine.

    DFKD_DATA=data DFKD_TEACHERS=teachers python benchmarks/speed/selecting.py OUT.json [IMAGES [JPEGS]]
    python benchmarks/speed/selecting.py OUT.json IMAGES JPEGS TEACHER     another network, of random weights

IMAGES (8,192; 0 for none) is the size of raw pools of 32 pixels. JPEGS (1,000) is the number of JPEG files of 500x400
pixels in a folder, from DFKD_PHOTOS if that is set. For JPEG files, decoding overlaps with the teacher. `bare` is the
slower of the teacher alone and the decoding alone. `of_both_after_another` compares with the sum of both times, which
is the least time if both use all cores. In the rows against a DataLoader, Pillow and torchvision's transforms v2 feed
the same network from one worker per core. Rounds alternate, so that a slow minute of the machine affects all. The
script prints medians.

Where the script may use one processor only (`taskset -c 0`), the times of JPEG files are processor times, which other
work on the machine affects less. The DataLoader then has no worker.

The name is not `select.py`, because that would shadow Python's own module for scripts in this folder.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from ratios import images, loader, report, row, seconds, untrained, write_photos
from torchvision.transforms import v2

from dfkd.config import SelectConfig
from dfkd.config.stages.shared import Input
from dfkd.data import open_pool
from dfkd.data.images.decode import processors
from dfkd.models.classifier import Classifier
from dfkd.models.load import load_model
from dfkd.select import stage as select
from dfkd.system.device import resolve_place

RAW = {
    "ResNet-20 of width 32": ("cifar_resnet:depth=20,width=32@{}/cifar10_resnet20_w32_train40k.pt", "cifar10"),
    "ResNet-56": ("cifar_resnet:depth=56@{}/cifar10_resnet56.th", "imagenet"),
}
PHOTOS = {"mobilenet_v3_small": 224, "ratios.Strided": 224, "cifar_resnet:depth=8,width=4": 64}
"""Networks of random weights and the sides of their input: one takes longer than decoding, the others do not."""
ROUNDS, BATCH, PHOTO_BATCH = 3, 256, 64
DEFAULTS = (8_192, 1_000)


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
    model = Classifier(load_model(teacher, Input(normalize)), resolve_place("auto", "auto"))
    views = model.preprocess(torch.from_numpy(pool)).split(BATCH)
    rounds = []
    for _ in range(ROUNDS):
        ours = seconds(command(folder, teacher, normalize, folder / "pool.npz"))
        bare = seconds(lambda: [model.outputs(view) for view in views])
        rounds.append((len(pool) / ours, len(pool) / bare))
    return row(f"select, {name}, images/s", rounds)


def spent(function):
    """Return the seconds of a call: by the clock, or of the processor if there is one only."""
    if processors() > 1:
        return seconds(function)
    started = time.process_time()
    function()
    return time.process_time() - started


def measure_photos(folder, name, side, count):
    """Return images per second of the command, against the slower of teacher and decoding, and a DataLoader."""
    photos = folder / "photos"
    if not photos.exists():
        write_photos(photos, count)
    teacher = untrained(name, folder)
    model = Classifier(load_model(teacher, Input("imagenet")), resolve_place("auto", "auto"))
    pool = open_pool([str(photos)], image_size=side, channels=3)
    options = {"image_size": side, "batch_size": PHOTO_BATCH}
    crop = [v2.Resize(side), v2.CenterCrop(side)]
    files = loader(photos, PHOTO_BATCH, crop, workers=processors() if processors() > 1 else 0)
    network = load_model(teacher).module.eval().to(memory_format=torch.channels_last)

    def scored():
        for _, batch in alone:
            model.outputs(model.preprocess(torch.from_numpy(batch.pixels)))

    @torch.no_grad()
    def engineers():
        for views in files:
            network(views.contiguous(memory_format=torch.channels_last)).softmax(dim=1).max(dim=1)

    engineers()  # its workers start
    rounds, apart, others = [], [], []
    for _ in range(ROUNDS):
        ours = spent(command(folder, teacher, "imagenet", photos, **options))
        alone = list(pool.batches(PHOTO_BATCH))
        teaching = spent(scored)
        del alone[:]
        decoding = spent(lambda: [None for _ in pool.batches(PHOTO_BATCH)])
        rounds.append((count / ours, count / max(teaching, decoding)))
        apart.append((count / teaching, count / decoding, (teaching + decoding) / ours))
        others.append((count / ours, count / spent(engineers)))
    taught, decoded, both = (round(median(values), 3) for values in zip(*apart, strict=True))
    found = {"teacher_alone": taught, "decoding_alone": decoded, "of_both_after_another": both}
    what = f"select, {name}, JPEG files to {side} pixels"
    return [row(f"{what}, images/s", rounds) | found, row(f"{what}, against a DataLoader", others)]


def main():
    if len(sys.argv) not in (2, 3, 4, 5):
        sys.exit(__doc__)
    sizes = [int(size) for size in sys.argv[2:4]]
    raw, jpegs = [*sizes, *DEFAULTS[len(sizes) :]]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if not raw:
            teachers = {}
        elif len(sys.argv) == 5:
            teachers = {sys.argv[4]: (untrained(sys.argv[4], work), "cifar10")}
        else:
            teachers = {n: (spec.format(os.environ["DFKD_TEACHERS"]), norm) for n, (spec, norm) in RAW.items()}
        np.savez(work / "few.npz", images=images(BATCH))
        command(work, untrained("lenet5", work), "cifar10", work / "few.npz")()  # imports
        rows = [measure_raw(work, name, *teacher, raw) for name, teacher in teachers.items()]
        if jpegs:
            rows += [each for name, side in PHOTOS.items() for each in measure_photos(work, name, side, jpegs)]
    report(Path(sys.argv[1]), "benchmarks/speed/selecting.py", rows)


if __name__ == "__main__":
    main()
