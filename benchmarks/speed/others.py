"""`dfkd distill` and `dfkd select` against scripts that an engineer would write, in one run on one machine.

    DFKD_DATA=data DFKD_TEACHERS=teachers python benchmarks/speed/others.py OUT.json [IMAGES]

The training is one pass of plain KD over IMAGES (default 2,048) images of 32 pixels in batches of 128. One script uses
a DataLoader with torchvision's transforms. Another one uses transforms.v2 on tensors, channels last, the fused
optimizer and, where it pays, autocast. The scoring is confidence and prediction of every image, against `datasets.map`
in batches of 256. It reads an Array3D column with the torch format, PNGs, or an Array3D column without a format. Map
turns the last one into lists (only with the ResNet). All of it runs on the processor.

The whole command is timed, with its checks, checkpoint and log, but without its imports. `select` also writes a
selection of all images. Convolutions dominate the time of ResNets. LeNets, over four times as many images, show the
time of the loop around them. Every script has its own process, because `dfkd` configures the allocator
(`dfkd.system.memory.keep_freed_memory`), and the others must not gain from it. Rounds alternate, so that a slow minute
of the machine affects all. The script prints medians.
"""

import contextlib
import io
import json
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from datasets import Array3D, Dataset, Features, Image
from distilling import STUDENT, TEACHER
from PIL import Image as Picture
from ratios import row, seconds
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.transforms import v2

from dfkd.config import DistillConfig, SelectConfig
from dfkd.config.stages.shared import Input
from dfkd.data.images.normalize import NORMALIZATIONS
from dfkd.distill import stage as distill
from dfkd.models import lenet5
from dfkd.models.load import load_model
from dfkd.select import stage as select
from dfkd.system.device import machine, resolve_place

SIZE, BATCH, ROUNDS = 32, 128, 3
EXECUTOR = partial(ProcessPoolExecutor, 1, get_context("spawn"))
MEAN, STD = NORMALIZATIONS["cifar10"]
COMMON = {"normalize": "cifar10", "image_size": SIZE, "device": "cpu"}


class Photos(torch.utils.data.Dataset):
    """Single images, each with a new augmentation."""

    def __init__(self, images, augment):
        self.images, self.augment = images, transforms.Compose(augment)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.augment(self.images[index])


def usual(images, teacher, student, batch):
    """Run a pass as torchvision's references and most distillation repositories write it."""
    augment = [Picture.fromarray, transforms.RandomCrop(SIZE, 4), transforms.RandomHorizontalFlip()]
    photos = Photos(images, [*augment, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    teacher, student = networks(teacher, student)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4)
    one_pass(photos, teacher, student, optimizer, batch)


def informed(images, teacher, student, batch, low):
    """Run a pass according to torch's tuning guide. On uint8 tensors, v2 is faster than on PIL images here.

    `low`: whether bfloat16 is faster on this machine.
    """
    augment = [v2.RandomCrop(SIZE, 4), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
    photos = Photos(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), [*augment, v2.Normalize(MEAN, STD)])
    teacher, student = (net.to(memory_format=torch.channels_last) for net in networks(teacher, student))
    rates = {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    optimizer = torch.optim.SGD(student.parameters(), **rates, fused=True)
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=low)
    one_pass(photos, teacher, student, optimizer, batch, autocast, torch.channels_last)


def networks(teacher, student):
    teacher = load_model(teacher, Input(image_size=SIZE)).module.eval()
    return teacher, load_model(student, classes=10, channels=3).module.train()


def one_pass(
    photos,
    teacher,
    student,
    optimizer,
    batch,
    autocast=contextlib.nullcontext,
    layout=torch.contiguous_format,
    temperature=4,
):
    workers = len(os.sched_getaffinity(0))  # the cores that this process may use
    # fork, as a script gets by default: this process is spawned and would spawn its workers, too
    loader = DataLoader(
        photos, batch, shuffle=True, drop_last=True, num_workers=workers, multiprocessing_context="fork"
    )
    for step, view in enumerate(loader, 1):
        view = view.to(memory_format=layout)
        with autocast():
            with torch.no_grad():
                target = teacher(view)
            answer = student(view)
        log_q, p = (answer.float() / temperature).log_softmax(1), (target.float() / temperature).softmax(1)
        loss = F.kl_div(log_q, p, reduction="batchmean") * temperature**2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.4f}", file=sys.stderr)


def mapped(stored, format_of, teacher):
    """Return confidence and prediction of all rows. The images are not written again, as map would do by default."""
    rows = datasets.load_from_disk(stored).with_format(format_of)
    model = load_model(teacher, Input(image_size=SIZE)).module.eval()
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))

    def score(batch):
        # the permuted rows are channels last in memory, the fastest layout for convolutions
        pixels = torch.from_numpy(np.asarray(batch["image"], dtype=np.uint8)).permute(0, 3, 1, 2)
        with torch.no_grad():
            confidence, prediction = model((pixels / 255 - mean) / std).softmax(dim=1).max(dim=1)
        return {"confidence": confidence.numpy(), "prediction": prediction.numpy()}

    return rows.map(score, batched=True, batch_size=256, remove_columns=rows.column_names, load_from_cache_file=False)


def png(pixels):
    buffer = io.BytesIO()
    Picture.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def store(images, folder):
    """Write the images as `dfkd select` and as `datasets` read them. Returns the three paths."""
    np.savez(folder / "pool.npz", images=images)
    columns = {"array": (images, Array3D((SIZE, SIZE, 3), "uint8")), "png": ([png(i) for i in images], Image())}
    for name, (values, feature) in columns.items():
        Dataset.from_dict({"image": values}, features=Features({"image": feature})).save_to_disk(folder / name)
    return folder / "pool.npz", folder / "array", folder / "png"


def selected(pool, count, teacher, folder):
    """Run `dfkd select` of all images, without cached scores. Returns the selection's folder."""
    fresh = Path(tempfile.mkdtemp(dir=folder))
    os.environ["DFKD_CACHE"] = str(fresh / "cache")
    options = {"method": "confidence", "count": count, "out": str(fresh / "selection")}
    return select.run(SelectConfig(teacher=teacher, pool=(str(pool),), filter="none", **options, **COMMON))


def distilled(samples, teacher, student, folder, batch):
    options = {
        "loss": ("kd",),
        "init": "none",
        "epochs": 1,
        "batch_size": batch,
        "out": str(Path(tempfile.mkdtemp(dir=folder)) / "run"),
    }
    distill.run(DistillConfig(teacher=teacher, student=student, samples=(str(samples),), **options, **COMMON))


def measure(pair, teacher, student, count, rounds, lists):
    """Return a row for each other script, of a pair of networks over `count` images."""
    images = np.load(Path(os.environ["DFKD_DATA"]) / "pool_tiny_imagenet_32.npz")["images"][:count]
    low = resolve_place("cpu", "auto").dtype == torch.bfloat16
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pool, array, pictures = store(images, folder)
        samples = selected(pool, count, teacher, folder)
        stages = {
            "distill": {
                "dfkd": partial(distilled, samples, teacher, student, folder, BATCH),
                "transforms": partial(usual, images, teacher, student, BATCH),
                "v2, channels last": partial(informed, images, teacher, student, BATCH, low),
            },
            "select": {
                "dfkd": partial(selected, pool, count, teacher, folder),
                "map, torch": partial(mapped, array, "torch", teacher),
                "map, PNG": partial(mapped, pictures, None, teacher),
            },
        }
        if lists:
            stages["select"]["map, lists"] = partial(mapped, array, None, teacher)
        rows = []
        for stage, ways in stages.items():
            rates = timed(ways, count, rounds)
            for way in list(ways)[1:]:
                compared = row(f"{stage} {pair}: {way}", [(each["dfkd"], each[way]) for each in rates])
                rows.append({"theirs" if key == "bare" else key: value for key, value in compared.items()})
    return rows


def timed(ways, count, rounds):
    """Return the images per second of every script in each round. The first round, with the imports, is left out."""
    with contextlib.ExitStack() as stack:
        own = {way: stack.enter_context(EXECUTOR()) for way in ways}
        found = [
            {way: count / own[way].submit(quietly, run).result() for way, run in ways.items()}
            for _ in range(rounds + 1)
        ]
    return found[1:]


def quietly(run):
    datasets.disable_progress_bars()
    return seconds(run)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    out, wanted = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2048
    count = max(wanted // BATCH, 1) * BATCH  # whole batches: dfkd fills every batch, a loader drops the last
    resnets = (TEACHER.format(os.environ["DFKD_TEACHERS"]), STUDENT)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        save_file(lenet5(num_classes=10, in_channels=3).state_dict(), Path(folder) / "lenet.safetensors")
        lenets = (f"lenet5:in_channels=3,num_classes=10@{folder}/lenet.safetensors", "lenet5_half")
        rows = measure("ResNet-20", *resnets, count, ROUNDS, lists=True)
        # making lists takes as long with the small teacher, so the ResNet's row shows its rate
        rows += measure("LeNet-5", *lenets, 4 * count, ROUNDS, lists=False)
    print(f"{'images/s':<40}{'dfkd':>10}{'theirs':>10}{'ratio':>8}")
    for r in rows:
        print(f"{r['what']:<40}{r['dfkd']:>10.1f}{r['theirs']:>10.1f}{r['ratio']:>8.3f}")
    result = {"command": "benchmarks/speed/others.py", "date": str(date.today()), "images": count}
    out.write_text(json.dumps({**result, **machine(torch.device("cpu")), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
