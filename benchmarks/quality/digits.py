"""The digits without junk: the demo's teacher and held-out digits, and a pool of 20,000 patches of photographs only.

    python benchmarks/quality/digits.py FOLDER

digits.toml, and the digits' settings of losses.py, generators.py, views.py and options.py use these files.
"""

import sys
from pathlib import Path

from dfkd.app import demo

PATCHES = 20_000


def prepare(folder):
    """Write the files, unless they exist."""
    demo.prepare_teacher(folder)
    demo.save(folder / "pool.npz", lambda: {"images": demo.patches(PATCHES)})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    prepare(Path(sys.argv[1]))
