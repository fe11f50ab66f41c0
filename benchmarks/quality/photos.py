"""Two private tasks of photographs, at 96 and 128 pixels, and how their rows are run.

    DFKD_PHOTOS=../shared/data/photos python benchmarks/quality/photos.py data

writes `caltech101-train.tar` (of the tars 000 to 005) and `caltech101-test.tar` (of the others), both without the
background class, which is no class of a teacher. Then, with the same DFKD_PHOTOS, DFKD_DATA=data and
PYTHONPATH=benchmarks/quality (for the half-width student):

Task A. The teacher knows STL-10, the pool is Caltech-101, 96 pixels.

    python benchmarks/quality/train_teacher.py --model resnet18 --normalize imagenet --image-size 96 --epochs 30 \\
        --data $DFKD_PHOTOS/stl10-train4k.tar --test $DFKD_PHOTOS/stl10-heldout1k.tar --out runs/photos-a-teacher
    dfkd run benchmarks/quality/photos-a.toml

Task B. The teacher knows Caltech-101, the pool is STL-10, 128 pixels.

    python benchmarks/quality/train_teacher.py --model resnet18 --normalize imagenet --image-size 128 --epochs 30 \\
        --data data/caltech101-train.tar --test data/caltech101-test.tar --out runs/photos-b-teacher
    dfkd run benchmarks/quality/photos-b.toml

Both pipelines run random photos with `kd` and the defaults, at 500 and 2,000 steps, three seeds, for a student of half
the width, `mobilenet_v3_small` and `squeezenet1_1`, all from random weights. Training labels are read for the teachers
alone, test labels for the accuracy. None of these rows has been run yet.
"""

import io
import os
import sys
import tarfile
from pathlib import Path

from torch import nn

from dfkd.system.files import replacing

PARTS = {"caltech101-train.tar": range(6), "caltech101-test.tar": range(6, 10)}
BACKGROUND = b"-1"


def half_resnet18(num_classes: int = 1000):
    """A ResNet-18 of half the width, a MODEL as `photos.half_resnet18`: 32 channels in its first stage."""
    from torchvision.models.resnet import BasicBlock, ResNet

    class Half(ResNet):
        def _make_layer(self, block, planes, *more, **options):
            return super()._make_layer(block, planes // 2, *more, **options)

        def __init__(self, **options):
            super().__init__(BasicBlock, [2, 2, 2, 2], **options)
            self.fc = nn.Linear(256, options["num_classes"])

    return Half(num_classes=num_classes)


def copy_labeled(sources, out):
    """Copy the samples of tars whose class is not the background. Returns their number."""
    copied = 0
    with replacing(out) as partial, tarfile.open(partial, "w") as target:
        for path in sources:
            with tarfile.open(path) as source:
                samples = {}
                for member in source:
                    samples.setdefault(member.name.partition(".")[0], []).append(member)
                for members in samples.values():
                    held = [(member, source.extractfile(member).read()) for member in members]
                    classes = [data.strip() for member, data in held if member.name.endswith(".cls")]
                    if classes != [BACKGROUND]:
                        copied += 1
                        for member, data in held:
                            target.addfile(plain(member), io.BytesIO(data))
    return copied


def plain(member):
    """The header of a member, without owner and time."""
    found = tarfile.TarInfo(member.name)
    found.size = member.size
    return found


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    photos, folder = Path(os.environ["DFKD_PHOTOS"]), Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    for name, numbers in PARTS.items():
        count = copy_labeled([photos / f"caltech101-{number:03d}.tar" for number in numbers], folder / name)
        print(f"{folder / name}: {count:,} photos")


if __name__ == "__main__":
    main()
