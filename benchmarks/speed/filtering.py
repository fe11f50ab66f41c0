"""Cost of the filter of `dfkd select`: scoring with a filter, and fitting one, against scoring without.

    DFKD_DATA=data DFKD_TEACHERS=teachers python benchmarks/speed/filtering.py OUT.json [IMAGES]

There are two rows per teacher, for IMAGES (8,192) raw images of 32 pixels. The first has the images scored per second
with a filter of 5x5 and without one. The second has the number of images scored in the time that fitting and judging a
filter takes, beside IMAGES. Rounds alternate. The script prints medians.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from ratios import images, report, row, seconds
from selecting import BATCH, DEFAULTS, RAW, ROUNDS

from dfkd.config.stages.shared import Input
from dfkd.data import open_pool
from dfkd.models.classifier import Classifier
from dfkd.models.load import load_model
from dfkd.select import pool_filter
from dfkd.select.filters import blur
from dfkd.select.score import PartScorer, score_pool
from dfkd.system.device import resolve_place


def scoring(folder, model, pool):
    """Return a function that scores the pool, with no scores cached."""
    parts = folder / f"scores{len(list(folder.glob('scores*')))}"
    parts.mkdir()
    teacher = Classifier(model, resolve_place("auto", "auto"), fold=True)
    scorer = PartScorer(teacher, pool, parts, BATCH, None)
    return lambda: score_pool(pool, parts, scorer, tap=None, max_unreadable=0.0)


def measure(folder, name, teacher, normalize, count):
    """Return the two rows of a teacher."""
    np.savez(folder / "pool.npz", images=images(count))
    pool = open_pool([str(folder / "pool.npz")], image_size=None, channels=3)
    model = load_model(teacher, Input(normalize, pool.image_size))
    fitted = pool_filter.parse_filter("fitted", model, pool)
    place = resolve_place("auto", "auto")
    # as wide as a fitted filter, but without a fit
    filtered = pool.filtered(blur(Classifier(model, place), torch.from_numpy(images(1)), sigma=0.5))
    scored, found = [], []
    seconds(scoring(folder, model, pool))  # imports and allocations
    for _ in range(ROUNDS):
        with_filter, without = (seconds(scoring(folder, model, each)) for each in (filtered, pool))
        fit = seconds(lambda: pool_filter.find(fitted, Classifier(model, place), pool))
        scored.append((count / with_filter, count / without))
        found.append((count * fit / without, count))
    return [
        row(f"{name}: images scored a second through a filter", scored),
        row(f"{name}: images scored in the time of a fit", found),
    ]


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    count = int(sys.argv[2]) if len(sys.argv) == 3 else DEFAULTS[0]
    teachers = {n: (spec.format(os.environ["DFKD_TEACHERS"]), norm) for n, (spec, norm) in RAW.items()}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        rows = [found for name, teacher in teachers.items() for found in measure(work, name, *teacher, count)]
    report(Path(sys.argv[1]), "benchmarks/speed/filtering.py", rows)


if __name__ == "__main__":
    main()
