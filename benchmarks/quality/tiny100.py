"""A private task of 100 classes, and a pool of 100 others, from Tiny-ImageNet at 32 pixels.

    python benchmarks/quality/tiny100.py data [CLASSES.npz]

It writes three files beside pool_tiny_imagenet_32.npz, which images.py makes:

    tiny100_train40k.npz     400 photos of each of the classes 0 to 99, labeled: only for training a teacher
    tiny100_heldout10k.npz   the other 100 of each, labeled: the test
    tiny100_pool50k.npz      all photos of the classes 100 to 199, without labels: the pool

CLASSES.npz has the class of each photo as `wnid_index`. The default is the file that images.py writes beside the pool.
The last 100 photos of a class, in the order of the pool, are held out. tiny100.json, written last, has the checksums of
all four files. A repeated command compares the checksums and writes missing or damaged files again. The teacher, and
then the rows:

    python benchmarks/quality/train_teacher.py --model cifar_resnet:depth=20,width=32 --normalize imagenet \\
        --data data/tiny100_train40k.npz --test data/tiny100_heldout10k.npz --epochs 20 --out runs/tiny100-teacher
    DFKD_DATA=data python benchmarks/quality/heaps.py --photos data/tiny100_pool50k.npz --out data/tiny100-heaps heap-20
    DFKD_DATA=data dfkd run benchmarks/quality/tiny100.toml
"""

import json
import sys
from pathlib import Path

import numpy as np
from images import CLASSES, POOL

from dfkd.system.checksums import Entry, check_file, entry, sealed, unsealed
from dfkd.system.errors import RequestError
from dfkd.system.files import replacing, write_json
from dfkd.system.records import parse

PRIVATE, HELD_OUT = 100, 100
"""Classes of the task, and photos of each class that are held out."""
MANIFEST = "tiny100.json"


def split(classes):
    """Return the rows of the three files, by name. Every photo is in exactly one file.

    Raises: RequestError unless the classes are 0 to 199 with equally many photos, more than are held out.
    """
    counts = np.bincount(classes)
    if len(counts) != 2 * PRIVATE or len(set(counts.tolist())) != 1 or counts[0] <= HELD_OUT:
        raise RequestError(f"there are not {2 * PRIVATE} classes with equally many photos; make the pool again")
    by_class = np.argsort(classes, kind="stable").reshape(len(counts), -1)
    return {
        "tiny100_train40k.npz": np.sort(by_class[:PRIVATE, :-HELD_OUT], axis=None),
        "tiny100_heldout10k.npz": np.sort(by_class[:PRIVATE, -HELD_OUT:], axis=None),
        "tiny100_pool50k.npz": np.sort(by_class[PRIVATE:], axis=None),
    }


def is_whole(path, written):
    """Return whether a file is the one that was written."""
    try:
        return bool(check_file(path, parse(Entry, written)))
    except (RequestError, ValueError):
        return False


def build(folder, of_photos):
    """Write the files that are missing or damaged. Returns their names. `of_photos` is the file of the classes."""
    classes = np.load(of_photos)["wnid_index"].astype(np.int64)
    with np.load(folder / POOL) as pool:
        images = pool["images"]
    if len(images) != len(classes):
        raise RequestError(f"{folder / POOL} has {len(images):,} photos, {of_photos} {len(classes):,}; make both again")
    path = folder / MANIFEST
    before = unsealed(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    source = {POOL: entry(folder / POOL)}
    if before.get(POOL) != source[POOL]:
        before = {}
    made = []
    for name, rows in split(classes).items():
        if name in before and is_whole(folder / name, before[name]):
            continue
        arrays = {"images": images[rows]}
        if classes[rows].max() < PRIVATE:
            arrays["labels"] = classes[rows]
        with replacing(folder / name) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        made.append(name)
    if made:
        write_json(path, sealed(source | {name: entry(folder / name) for name in split(classes)}))
    return made


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    try:
        made = build(folder, Path(sys.argv[2]) if len(sys.argv) == 3 else folder / CLASSES)
    except (RequestError, OSError, ValueError) as error:
        sys.exit(f"tiny100.py: {error}")
    print(f"{folder}: {', '.join(made) or 'nothing to do, all files are whole'}")


if __name__ == "__main__":
    main()
