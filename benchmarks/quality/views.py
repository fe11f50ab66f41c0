"""What kept answers of the teacher cost in accuracy: K fixed views of every image against a new view every time.

    python benchmarks/quality/views.py digits OUT_DIR [ROW ...]     the demo's digits, three seeds: half a minute a run
    python benchmarks/quality/views.py cifar10 OUT_DIR [ROW ...]    needs DFKD_DATA and DFKD_TEACHERS: minutes a run

`kd` alone on random images, at equal steps; on CIFAR-10's teacher 5,000 images, so that 1,000 steps are 25 passes. The
settings are otherwise those of losses.py beside it, and so is what is written: views-digits.csv and .json are its
report.csv and measured.json. The seconds of a row with kept answers hold those of making the answers that no row
before it has made: rows run in the order of K, so that each pays for its own new ones.
"""

import sys
from pathlib import Path

from losses import SETTINGS, measure

ROWS = {"live": 0, "views-1": 1, "views-4": 4, "views-16": 16}
CHANGED = {"cifar10": {"count": 5_000}, "digits": {}}


def main():
    if len(sys.argv) < 3 or sys.argv[1] not in SETTINGS or not {*sys.argv[3:]} <= {*ROWS}:
        sys.exit(f"{__doc__}\nROW is one of {', '.join(ROWS)}")
    setting, out, *names = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
    rows = {name: {"loss": ["kd"], "teacher_views": ROWS[name]} for name in names or ROWS}
    sys.exit(measure("views", setting, out, rows, **CHANGED[setting]))


if __name__ == "__main__":
    main()
