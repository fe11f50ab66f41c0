"""What each generator teaches, at equal steps of the student, beside images of a pool: the table in docs/generators.md.

    python benchmarks/quality/generators.py digits OUT_DIR [ROW ...]     the demo's digits, three seeds: minutes
    python benchmarks/quality/generators.py cifar10 OUT_DIR [ROW ...]    needs DFKD_DATA and DFKD_TEACHERS: hours

The settings are those of losses.py beside it, and so is what is written: generators-SETTING.csv and .json are its
report.csv and measured.json. Every row has the student's loss `kd` and nothing else, so that they differ in where the
images come from alone; `random` is the pool's row.
"""

import sys
from pathlib import Path

from losses import SETTINGS, measure

from dfkd import generators

REAL = {"mosaickd"}
"""Methods that learn from the pool too."""


def rows():
    """The options of every row."""
    made = {"random": {}}
    for name in sorted(name.lower() for name in generators.__all__):
        made[name] = {"source": name} if name in REAL else {"source": name, "samples": []}
    return made


def main():
    known = rows()
    if len(sys.argv) < 3 or sys.argv[1] not in SETTINGS or not {*sys.argv[3:]} <= {*known}:
        sys.exit(f"{__doc__}\nROW is one of {', '.join(known)}")
    setting, out, *names = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
    sys.exit(measure("generators", setting, out, {name: {"loss": ["kd"], **known[name]} for name in names or known}))


if __name__ == "__main__":
    main()
