"""Accuracy with kept answers of the teacher: K fixed views of every image against a new view every time.

    python benchmarks/quality/views.py digits OUT_DIR [ROW ...]     the demo's digits, three seeds: half a minute a run
    python benchmarks/quality/views.py cifar10 OUT_DIR [ROW ...]    needs DFKD_DATA and DFKD_TEACHERS: minutes a run

The loss is `kd` alone, on random images, at equal steps. On CIFAR-10's teacher there are 5,000 images, so that 1,000
steps are 25 passes. All other settings and the output files are those of losses.py: views-digits.csv and .json are
copies of its report.csv and measured.json. The seconds of a row include the computation of answers that no earlier row
has made. Rows run in the order of K, so each row pays for its own new answers.
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
