"""Shared parts of the benchmarks against bare loops: images, networks, times, rows of medians, table and file."""

import io
import json
import os
import tarfile
import time
from datetime import date
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from dfkd.data.images.decode import processors
from dfkd.data.images.normalize import NORMALIZATIONS
from dfkd.models.load import load_model
from dfkd.system.device import machine, resolve_place


def seconds(function):
    """Return the seconds of a call, with a wait for the device."""
    started = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def images(count):
    """Return the first images of the pool in DFKD_DATA. Without it, return noise, which takes the same time."""
    if "DFKD_DATA" not in os.environ:
        return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    pool = np.load(Path(os.environ["DFKD_DATA"]) / "pool_tiny_imagenet_32.npz", mmap_mode="r")["images"]
    return np.ascontiguousarray(pool[:count])


def photos(count, width=500, height=400):
    """JPEG files of one shape: photos of Caltech-101 in DFKD_PHOTOS, enlarged, with the noise that large photos have.

    Without DFKD_PHOTOS they are of `images`. Of fewer photos some come again, with other noise.
    """
    rng, found = np.random.default_rng(0), []
    for image in islice(cycle(list(islice(_pictures(), count))), count):
        large = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (large + rng.integers(-8, 9, (height, width, 1), dtype=np.int16)).clip(0, 255)
        file = io.BytesIO()
        Image.fromarray(noisy.astype(np.uint8)).save(file, "JPEG", quality=88)
        found.append(file.getvalue())
    return found


def _pictures():
    if "DFKD_PHOTOS" not in os.environ:
        yield from map(Image.fromarray, images(100))
        return
    for path in sorted(Path(os.environ["DFKD_PHOTOS"]).glob("caltech101-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    yield Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB")


def write_photos(folder, count):
    """A folder of photos, 0.2 megapixels each."""
    folder.mkdir()
    for i, data in enumerate(photos(count)):
        (folder / f"{i:05d}.jpg").write_bytes(data)
    return folder


class Strided(nn.Module):
    """A classifier that takes less time than decoding its images: MODEL `ratios.Strided`."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 16, stride=16)
        self.norm = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, images):
        return self.fc(self.norm(self.patches(images)).relu().mean(dim=(2, 3)))


class Files(Dataset):
    """Image files as an engineer reads them: by Pillow, whole, each then through transforms of torchvision."""

    def __init__(self, paths, augment):
        mean, std = NORMALIZATIONS["imagenet"]
        ready = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        self.paths, self.transform = paths, v2.Compose([*augment, *ready])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def loader(folder, batch, augment, workers=None, **options):
    """Batches of the photos of a folder, by `workers`, or one per processor; they stay from pass to pass."""
    files = Files(sorted(folder.glob("*.jpg")), augment)
    workers = processors() if workers is None else workers
    return DataLoader(files, batch, num_workers=workers, persistent_workers=workers > 0, **options)


def untrained(name, folder):
    """Write random weights of a teacher, which take the same time as trained ones. Returns the MODEL text."""
    torch.manual_seed(0)
    path = folder / f"{name.partition(':')[0]}.safetensors"
    save_file(load_model(name, classes=10, channels=3).module.state_dict(), path)
    return f"{name}@{path}"


def row(name, rounds):
    """Return a row of medians. `rounds` are pairs of rates: that of dfkd and that of the bare loop."""
    ratios = [ours / bare for ours, bare in rounds]
    return {
        "what": name,
        "dfkd": round(median(ours for ours, _ in rounds), 2),
        "bare": round(median(bare for _, bare in rounds), 2),
        "ratio": round(median(ratios), 3),
        "ratios": [round(r, 3) for r in ratios],
    }


def report(out, command, rows):
    """Print the rows and write them as JSON."""
    for r in rows:
        print(f"{r['what']:<60}{r['dfkd']:>10.1f}{r['bare']:>10.1f}{r['ratio']:>8.3f}")
    measured_on = machine(resolve_place("auto", "auto").device)
    result = {"command": command, "date": str(date.today()), **measured_on, "rows": rows}
    out.write_text(json.dumps(result, indent=2) + "\n")
