"""What each generator teaches, at equal steps of the student, beside images of a pool: the table in docs/generators.md.

    python benchmarks/quality/generators.py digits OUT_DIR [ROW ...]     the demo's digits, two seeds: minutes a row
    python benchmarks/quality/generators.py cifar10 OUT_DIR [ROW ...]    DFKD_DATA, DFKD_TEACHERS: ten minutes a row

The settings are those of losses.py beside it, and so is what is written: generators-SETTING.csv and .json are its
report.csv and measured.json. Every row has the student's loss `kd` and nothing else, so that they differ in where the
images come from alone; `random` is the pool's row, `untrained` is a generator that never
learns. Networks of generators have half their default width.
"""

import inspect
import sys
from pathlib import Path

from losses import SETTINGS, measure

from dfkd import generators

CHANGED = {"digits": {"seeds": [0, 1]}, "cifar10": {"steps": 600}}
WIDTH = 32
"""Of the generators' networks, half their default: at these lengths of training the time goes further."""


def rows():
    """The options of every row."""
    made = {"random": {}, "untrained": {"source": f"dafl:width={WIDTH},lr=0", "samples": []}}
    for name in sorted(generators.__all__, key=str.lower):
        kind, name = getattr(generators, name), name.lower()
        source = f"{name}:width={WIDTH}" if "width" in inspect.signature(kind).parameters else name
        made[name] = {"source": source} if kind.needs_real else {"source": source, "samples": []}
    return made


def main():
    known = rows()
    if len(sys.argv) < 3 or sys.argv[1] not in SETTINGS or not {*sys.argv[3:]} <= {*known}:
        sys.exit(f"{__doc__}\nROW is one of {', '.join(known)}")
    setting, out, *names = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
    chosen = {name: {"loss": ["kd"], **known[name]} for name in names or known}
    sys.exit(measure("generators", setting, out, chosen, **CHANGED[setting]))


if __name__ == "__main__":
    main()
