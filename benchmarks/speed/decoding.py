"""Decoding rate of JPEG files to a square, in files a second on one thread: dfkd beside other libraries.

    DFKD_PHOTOS=photos python benchmarks/speed/decoding.py OUT.json [FILES]
    python benchmarks/speed/decoding.py OUT.json FILES nvjpeg    `--decoder nvjpeg` beside all threads of the CPU

The files are FILES (60) photos of Caltech-101, enlarged to 500x400 and 4000x3000 pixels, with noise like that of large
photos. Every library resizes the shorter side and crops the center. `dfkd` is `dfkd.data.images.decode`: simplejpeg,
with the DCT scaling of libjpeg-turbo to at least twice the size, and resizing by torch. The others are Pillow with and
without draft mode and its own resizing, torchvision.io, and simplejpeg with more scales and Pillow's resizing.
PyTurboJPEG is left out, because it needs a system library beside its package. Rates are per processor second. Rounds
alternate.

With `nvjpeg`, a GPU decodes batches of 256 files, and the other side is `decode` in one thread per processor. Rates are
by the clock. The rows also say by how many levels a pixel differs on average.
"""

import io
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from ratios import photos, report, row, seconds
from torchvision.transforms import v2

from dfkd.data.images.decode import decode, processors
from dfkd.data.images.frame import ENCODED_ABOVE
from dfkd.data.images.nvjpeg import gpu_decoder
from dfkd.system.device import resolve_place

SHAPES = {(500, 400): (64, 224), (4000, 3000): (224,)}
ROUNDS, BATCH = 3, 256


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


def beside_others(files, size, what):
    """Return a row for each library that is installed."""
    rounds = {name: [] for name in OTHERS}
    for _ in range(ROUNDS):
        ours = rate(lambda data, size: decode(data, size, 3).pixels, files, size)
        for name, function in OTHERS.items():
            try:
                rounds[name].append((ours, rate(function, files, size)))
            except ImportError:
                continue
    return [row(f"{what}: dfkd, {name}", values) for name, values in rounds.items() if values]


def on_gpu(files, size, what):
    """Return the row of a GPU beside all threads of the CPU, for full batches."""
    decoder = gpu_decoder("nvjpeg", resolve_place("auto", "fp32").device, True)
    files = [*islice(cycle(files), BATCH)]
    found, rounds = {}, []
    with ThreadPoolExecutor(processors()) as threads:
        ways = {
            "nvjpeg": lambda: found.update(nvjpeg=decoder(files, size, 3)),
            "threads": lambda: found.update(threads=[*threads.map(lambda data: decode(data, size, 3), files)]),
        }
        for _ in range(ROUNDS + 1):
            rounds.append([BATCH / seconds(run) for run in ways.values()])
    both = zip(found["nvjpeg"], found["threads"], strict=True)
    levels = [np.abs(a.pixels.astype(int) - b.pixels).mean() for a, b in both if a is not None]
    differs = {
        "decoded_by_gpu": len(levels),
        "levels_of_difference": round(float(np.mean(levels)), 3) if levels else None,
    }
    return [row(f"{what}: nvjpeg, {processors()} threads", rounds[1:]) | differs]


def main():
    if len(sys.argv) not in (2, 3, 4) or sys.argv[3:] not in ([], ["nvjpeg"]):
        sys.exit(__doc__)
    torch.set_num_threads(1)
    rows = []
    measure = on_gpu if sys.argv[3:] else beside_others
    for (width, height), sizes in SHAPES.items():
        count = int(sys.argv[2]) if len(sys.argv) > 2 else 60
        files = photos(max(2, count * 500 * 400 // (width * height)), width, height)
        for size in sizes:
            if size > ENCODED_ABOVE or measure is beside_others:
                rows += measure(files, size, f"{width}x{height} to {size}, files/s")
    report(Path(sys.argv[1]), "benchmarks/speed/decoding.py", rows)


if __name__ == "__main__":
    main()
