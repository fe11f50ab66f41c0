"""Pools as they are found: photos among junk, photos of few classes, images that deceive the teacher.

    DFKD_DATA=data DFKD_TEACHERS=teachers python benchmarks/quality/heaps.py [OPTION ...] POOL ...

images.py makes the files in DFKD_DATA. POOL is one of

    heap-20      100,000 images of 32 pixels, of which 20 % are photos (--photos). The rest are junk.
    heap-2       The same with 2 % photos.
    long-tail    Only photos. The class that the teacher predicts k-th most often has n / k**2 photos, where n is the
                 number for k = 1. No photo is repeated, so the pool has fewer than 100,000.
    adversarial  90 % photos and 10 % crafted images. Crafting begins with junk and takes steps of 8 gray values along
                 the gradient's sign. It ends when the teacher gives 0.99 to a chosen class, or after 12 steps.

Junk is text, single glyphs, layouts of screens, gradients, noise, textures and near-copies. Textures are cut from 200
photos that are not in the pool. Near-copies are of one photo in 40: recompressed, shifted, recolored.
`dfkd/app/junk.py` draws the junk. long-tail and adversarial need DFKD_TEACHERS, the folder of
cifar10_resnet20_w32_train40k.pt.

The script writes for each POOL

    POOL.npz         `images`, for `--pool`
    POOL-photos.npz  Only the photos, from which the rows `clean` learn. long-tail has no such file.
    POOL-kinds.npz   `names` and, for each image, `kind` (an index in `names`) and `original`: for a near-copy the row
                     of its photo, for a photo its row in --photos, else -1. No selection reads it.

The same versions of numpy and Pillow give the same bytes of heap-20 and heap-2. The other two also depend on torch and
the processor. An existing pool is kept. A heap takes half a minute on one core and 1 GB of memory.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import dfkd
from dfkd.app import demo, heaps, junk
from dfkd.config.stages.shared import Input
from dfkd.data import open_pool
from dfkd.models.load import load_model
from dfkd.system.console import progress
from dfkd.system.errors import RequestError

IMAGES, SINGLES = 100_000, 200
"""Images of a pool, and photos from which textures are cut."""
POOL = "pool_tiny_imagenet_32.npz"
SHARES = {"heap-20": 0.2, "heap-2": 0.02, "adversarial": 0.9}
"""Share of photos in each pool."""
POWER = 2.0
"""Exponent by which the classes of `long-tail` become rare."""
STEP, STEPS, SURE, BATCH = 8, 12, 0.99, 250
"""Crafting: gray values per step, most steps, confidence that ends the steps, and images per batch."""
STARTS = (junk.text, junk.glyph, junk.screen, junk.gradient, junk.noise)


def save(path, **arrays):
    """Write an .npz file, unless it exists."""
    demo.save(path, lambda: arrays)
    print(path, flush=True)


def teacher():
    """Return the MODEL text of the teacher that predicts classes and is deceived."""
    folder = os.environ.get("DFKD_TEACHERS")
    if not folder:
        raise RequestError("DFKD_TEACHERS is not set; it names the folder of the teacher's weights")
    return f"cifar_resnet:depth=20,width=32@{folder}/cifar10_resnet20_w32_train40k.pt"


def drawn(photos, *counts, seed):
    """Draw rows of the photo pool in random order, one array per count, with no row repeated."""
    if sum(counts) > len(photos):
        raise RequestError(f"{sum(counts):,} photos are needed and the pool has {len(photos):,}; lower --images")
    return np.split(np.random.default_rng(seed).permutation(len(photos))[: sum(counts)], np.cumsum(counts)[:-1])


def make_heap(out, name, photos, images, seed):
    """Write a pool of photos among junk."""
    rows, singles = drawn(photos, round(SHARES[name] * images), SINGLES, seed=seed)
    found = heaps.heap(photos.images(rows).pixels, photos.images(singles).pixels, images, seed)
    original = found.original.copy()
    original[found.kind == 0] = rows[found.original[found.kind == 0]]
    save(out / f"{name}-kinds.npz", names=np.array(heaps.KINDS), kind=found.kind, original=original)
    save(out / f"{name}-photos.npz", images=found.images[found.kind == 0])
    save(out / f"{name}.npz", images=found.images)


def tail(predictions, seed):
    """Return rows in random order such that the k-th most frequent class has n / k**POWER of them."""
    rng, counts = np.random.default_rng(seed), np.bincount(predictions)
    order = np.argsort(-counts, kind="stable")
    wanted = np.rint(counts.max() / np.arange(1, len(counts) + 1) ** POWER).astype(np.int64)
    classes = zip(order, np.minimum(wanted, counts[order]), strict=True)
    return rng.permutation(np.concatenate([rng.permutation(np.flatnonzero(predictions == k))[:n] for k, n in classes]))


def make_long_tail(out, name, photos, images, seed):
    """Write a pool of photos in which the teacher's predicted classes are uneven."""
    options = {"method": "random", "filter": "none", "count": 1, "verbose": False}
    pixels = photos.images(np.arange(min(images, len(photos)))).pixels
    scores = dfkd.Teacher(teacher(), normalize="cifar10", image_size=32).select(pixels, **options).scores
    rows = tail(np.asarray(scores["prediction"]), seed)
    save(out / f"{name}-kinds.npz", names=np.array(["photo"]), kind=np.zeros(len(rows), np.int8), original=rows)
    save(out / f"{name}.npz", images=pixels[rows])


def craft(model, start, target):
    """Change images until the model predicts the target. Returns gray values [n, 3, side, side]."""
    images, left = start.clone(), torch.arange(len(start))
    for _ in range(STEPS):
        view = images[left].requires_grad_()
        logits = model.module(model.preprocess.normalized(view / 255))
        unsure = logits.detach().softmax(1).gather(1, target[left, None])[:, 0] < SURE
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, target[left], reduction="sum"), view)
        left, gradient = left[unsure], gradient[unsure]
        if not len(left):
            break
        images[left] = (images[left] - STEP * gradient.sign()).clamp(0, 255)
    return images


def craft_all(model, count, rng):
    """Craft images [count, 32, 32, 3], evenly over classes and kinds of initial images."""
    per_start = np.diff(np.rint(np.linspace(0, count, len(STARTS) + 1)).astype(np.int64)).tolist()
    start = np.concatenate([make(rng, n, 32) for make, n in zip(STARTS, per_start, strict=True)])
    pixels, targets = torch.from_numpy(start).permute(0, 3, 1, 2).float(), torch.from_numpy(np.arange(count) % 10)
    with progress("craft", count, "images") as shown:
        for rows in torch.arange(count).split(BATCH):
            pixels[rows] = craft(model, pixels[rows], targets[rows])
            shown.advance(len(rows))
    return pixels.permute(0, 2, 3, 1).byte().numpy()


def make_adversarial(out, name, photos, images, seed):
    """Write a pool of photos, and images crafted so that the teacher is confidently wrong."""
    model = load_model(teacher(), Input("cifar10"))
    (rows,) = drawn(photos, round(SHARES[name] * images), seed=seed)
    rng, pixels = np.random.default_rng(seed), photos.images(rows).pixels
    made = craft_all(model, images - len(rows), rng)
    order = rng.permutation(images)
    kind, original = (np.arange(images) >= len(rows)).astype(np.int8), np.append(rows, np.full(len(made), -1))
    save(out / f"{name}-kinds.npz", names=np.array(["photo", "crafted"]), kind=kind[order], original=original[order])
    save(out / f"{name}-photos.npz", images=pixels)
    save(out / f"{name}.npz", images=np.concatenate([pixels, made])[order])


MAKERS = {"heap-20": make_heap, "heap-2": make_heap, "long-tail": make_long_tail, "adversarial": make_adversarial}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="+", metavar="POOL", choices=MAKERS)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the pools go (default: heaps in DFKD_DATA)")
    parser.add_argument("--photos", metavar="DATA", help=f"where its photos come from (default: {POOL} in DFKD_DATA)")
    parser.add_argument("--images", type=int, default=IMAGES, metavar="N", help="images of a pool (default 100,000)")
    args = parser.parse_args()
    data = Path(os.environ.get("DFKD_DATA", "data"))
    out = args.out or data / "heaps"
    try:
        photos = open_pool([args.photos or str(data / POOL)], image_size=32, channels=3)
        for seed, (name, make) in enumerate(MAKERS.items(), 1):
            if name in args.pools and not (out / f"{name}.npz").exists():
                make(out, name, photos, args.images, seed)
    except RequestError as error:
        sys.exit(f"heaps.py: {error}")


if __name__ == "__main__":
    main()
