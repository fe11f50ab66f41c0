"""Pools as they are found: photos among junk.

    DFKD_DATA=data python benchmarks/quality/heaps.py [--out FOLDER] [--images N] POOL ...

DFKD_DATA is where `python ../shared/tools/unpack_data.py data` wrote its files; FOLDER is `heaps` in it where none is
given. POOL is one of

    heap-20      100,000 images of 32 pixels, of which 20 % are Tiny-ImageNet photos. The rest are junk.
    heap-2       The same with 2 % photos.

Junk is text, single glyphs, layouts of screens, gradients, noise, textures that are cut out of 200 photos which are not
in the pool, and near-copies of one photo in 40: recompressed, shifted, recolored. `dfkd/app/junk.py` draws it.

For each POOL the folder gets

    POOL.npz         `images`, for `--pool`
    POOL-photos.npz  The photos of it alone: what the rows `clean` learn from.
    POOL-kinds.npz   `names` and, for each image, `kind` (a position in `names`) and `original`: for a near-copy the row
                     of its photo, for a photo its row in pool_tiny_imagenet_32.npz, else -1. No selection reads it.

The same versions of numpy and Pillow give the same bytes. A pool that is there is kept. A heap takes half a minute on
one core and 1 GB of memory.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np

from dfkd.app import junk
from dfkd.data import open_pool
from dfkd.system.errors import RequestError
from dfkd.system.files import replacing

IMAGES, SINGLES = 100_000, 200
"""Images of a pool, and photos that textures are cut out of."""
PHOTOS = {"heap-20": 0.2, "heap-2": 0.02}
"""The share of photos in the heaps."""


def save(path, **arrays):
    """Write an .npz file unless it is there."""
    if not path.exists():
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    print(path, flush=True)


def drawn(photos, images, *counts, seed):
    """Rows of the photo pool, in random order: so many for each count, none twice."""
    if sum(counts) > len(photos):
        raise RequestError(f"{images:,} images need {sum(counts):,} photos; the pool has {len(photos):,}")
    return np.split(np.random.default_rng(seed).permutation(len(photos))[: sum(counts)], np.cumsum(counts)[:-1])


def make_heap(name, photos, images, out):
    """Photos among junk."""
    seed = 1 + [*PHOTOS].index(name)
    rows, singles = drawn(photos, images, round(PHOTOS[name] * images), SINGLES, seed=seed)
    found = junk.heap(photos.images(rows).pixels, photos.images(singles).pixels, images, seed)
    original = found.original.copy()
    original[found.kind == 0] = rows[found.original[found.kind == 0]]
    save(out / f"{name}-kinds.npz", names=np.array(junk.KINDS), kind=found.kind, original=original)
    save(out / f"{name}-photos.npz", images=found.images[found.kind == 0])
    save(out / f"{name}.npz", images=found.images)


MAKERS = dict.fromkeys(PHOTOS, make_heap)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="+", metavar="POOL", choices=MAKERS)
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    parser.add_argument("--images", type=int, default=IMAGES, metavar="N")
    args = parser.parse_args()
    data = Path(os.environ.get("DFKD_DATA", "data"))
    out = args.out or data / "heaps"
    try:
        photos = open_pool([str(data / "pool_tiny_imagenet_32.npz")], image_size=32, channels=3)
        for name in args.pools:
            if not (out / f"{name}.npz").exists():
                MAKERS[name](name, photos, args.images, out)
    except RequestError as error:
        sys.exit(f"heaps.py: {error}")


if __name__ == "__main__":
    main()
