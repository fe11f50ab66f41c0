"""The images of the comparisons on CIFAR-10, from the public data sets.

    python benchmarks/quality/images.py DATA [--tiny-imagenet tiny-imagenet-200]

It writes to the folder DATA. If all files of a data set exist, they are kept:

    cifar10_train40k.npz      the first 40,000 training images of CIFAR-10, with labels: only for training a teacher
    cifar10_heldout10k.npz    the other 10,000, with labels: the test
    cifar10_test1k.npz        the first 1,000 test images, with labels: the test for teachers that saw all 50,000
    pool_tiny_imagenet_32.npz the 100,000 training photos of Tiny-ImageNet at 32 pixels, without labels: the pool
    pool_tiny_imagenet_32-classes.npz
                              the class of each photo of the pool, only for tiny100.py

torchvision downloads CIFAR-10 to DATA. --tiny-imagenet names the unpacked archive of Tiny-ImageNet. Its photos of 64
pixels are averaged over squares of 2 by 2, and shuffled. The pool of the published results has the same photos, but in
another order and compressed as WebP. So accuracies are not exactly the published ones.

These commands make the teacher. The other scripts find the two folders by DFKD_DATA and DFKD_TEACHERS.

    python benchmarks/quality/train_teacher.py --model cifar_resnet:depth=20,width=32 --normalize cifar10 \\
        --data DATA/cifar10_train40k.npz --test DATA/cifar10_heldout10k.npz --out teacher
    python -c "import safetensors.torch as st, torch; \\
        torch.save(st.load_file('teacher/student.safetensors'), 'TEACHERS/cifar10_resnet20_w32_train40k.pt')"
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10

from dfkd.system.files import replacing

TRAIN, TEST = 40_000, 1_000
SIDE = 32
POOL, CLASSES = "pool_tiny_imagenet_32.npz", "pool_tiny_imagenet_32-classes.npz"


def save(file, **arrays):
    """Write arrays to an .npz file."""
    with replacing(file) as partial, partial.open("wb") as opened:
        np.savez(opened, allow_pickle=False, **arrays)


def cifar10(folder):
    """Write the three files of CIFAR-10."""
    train, test = (CIFAR10(folder, train=train, download=True) for train in (True, False))
    for name, of, rows in (
        ("cifar10_train40k", train, slice(TRAIN)),
        ("cifar10_heldout10k", train, slice(TRAIN, None)),
        ("cifar10_test1k", test, slice(TEST)),
    ):
        save(folder / f"{name}.npz", images=of.data[rows], labels=np.array(of.targets[rows], dtype=np.int64))


def tiny_imagenet(folder, photos):
    """Write the pool, and the class of each photo as the place of its folder among the sorted ones."""
    of_class = sorted(path for path in (photos / "train").iterdir() if path.is_dir())
    files = [(file, k) for k, path in enumerate(of_class) for file in sorted((path / "images").glob("*.JPEG"))]
    if not files:
        sys.exit(f"images.py: {photos} has no train/CLASS/images/*.JPEG")
    order = np.random.default_rng(0).permutation(len(files))
    with ThreadPoolExecutor() as threads:
        images = np.stack([*threads.map(lambda row: _small(files[row][0]), order)])
    save(folder / POOL, images=images)
    save(folder / CLASSES, wnid_index=np.array([files[row][1] for row in order], dtype=np.uint8))


def _small(file):
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX))


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tiny-imagenet", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    options.data.mkdir(parents=True, exist_ok=True)
    if not all((options.data / f"cifar10_{name}.npz").exists() for name in ("train40k", "heldout10k", "test1k")):
        cifar10(options.data)
    if options.tiny_imagenet is not None and not (options.data / CLASSES).exists():
        tiny_imagenet(options.data, options.tiny_imagenet)


if __name__ == "__main__":
    main(sys.argv[1:])
