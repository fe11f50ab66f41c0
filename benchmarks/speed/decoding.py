"""Decoding rate of JPEG files to a square, in files a second on one thread: dfkd beside other libraries.

    DFKD_PHOTOS=../shared/data/photos python benchmarks/speed/decoding.py OUT.json [FILES]

The files are FILES (60) photos of Caltech-101, enlarged to 500x400 and 4000x3000 pixels, with noise like that of large
photos. Every library resizes the shorter side and crops the center. `dfkd` is `dfkd.data.images.decode`: Pillow's draft
mode, which uses the DCT scaling of libjpeg-turbo, and resizing by torch. The others are Pillow with and without draft
mode and its own resizing, torchvision.io, and simplejpeg if it is installed (pip install simplejpeg). PyTurboJPEG is
left out, because it needs a system library beside its package. Rates are per processor second. Rounds alternate.
"""

import io
import os
import sys
import tarfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from ratios import report, row
from torchvision.transforms import v2

from dfkd.data.images.decode import decode

SHAPES = {(500, 400): (64, 224), (4000, 3000): (224,)}
ROUNDS = 3


def photos(width, height, count):
    """Return JPEG files of one shape."""
    rng, found = np.random.default_rng(0), []
    with tarfile.open(Path(os.environ["DFKD_PHOTOS"]) / "caltech101-000.tar") as tar:
        for member in tar:
            if member.name.endswith(".jpg") and len(found) < count:
                image = Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB")
                large = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
                noisy = (large + rng.integers(-8, 9, (height, width, 1), dtype=np.int16)).clip(0, 255)
                file = io.BytesIO()
                Image.fromarray(noisy.astype(np.uint8)).save(file, "JPEG", quality=88)
                found.append(file.getvalue())
    return found


def square(image, size):
    """Resize and crop a PIL image by Pillow."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)))


def with_pillow(data, size, draft):
    image = Image.open(io.BytesIO(data))
    if draft:
        image.draft(None, (2 * size, 2 * size))
    return square(image, size)


def with_torchvision(data, size):
    with warnings.catch_warnings():  # torchvision 0.29 will remove it
        warnings.simplefilter("ignore", DeprecationWarning)
        planes = torchvision.io.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    return v2.functional.center_crop(v2.functional.resize(planes, size, antialias=True), size)


def with_simplejpeg(data, size):
    import simplejpeg

    pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=2 * size, min_width=2 * size)
    return square(Image.fromarray(pixels), size)


OTHERS = {
    "Pillow": lambda data, size: with_pillow(data, size, False),
    "Pillow, draft mode": lambda data, size: with_pillow(data, size, True),
    "torchvision.io": with_torchvision,
    "simplejpeg": with_simplejpeg,
}


def rate(function, files, size):
    """Return the files decoded per second of processor time."""
    started = time.process_time()
    for data in files:
        function(data, size)
    return len(files) / max(time.process_time() - started, 1e-9)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    torch.set_num_threads(1)
    rows = []
    for (width, height), sizes in SHAPES.items():
        count = int(sys.argv[2]) if len(sys.argv) == 3 else 60
        files = photos(width, height, max(2, count * 500 * 400 // (width * height)))
        for size in sizes:
            rounds = {name: [] for name in OTHERS}
            for _ in range(ROUNDS):
                ours = rate(lambda data, size: decode(data, size, 3).pixels, files, size)
                for name, function in OTHERS.items():
                    try:
                        rounds[name].append((ours, rate(function, files, size)))
                    except ImportError:
                        continue
            what = f"{width}x{height} to {size}, files/s"
            rows += [row(f"{what}: dfkd, {name}", values) for name, values in rounds.items() if values]
    report(Path(sys.argv[1]), "benchmarks/speed/decoding.py", rows)


if __name__ == "__main__":
    main()
