"""Students of each generator, at equal student steps, beside images of a pool: the table in docs/generators.md.

    python benchmarks/quality/generators.py digits OUT_DIR [ROW ...]     the demo's digits, two seeds: minutes a row
    python benchmarks/quality/generators.py cifar10 OUT_DIR [ROW ...]    DFKD_DATA, DFKD_TEACHERS: ten minutes a row

Settings and output files are those of losses.py: results/generators-SETTING.csv and .json are copies of its report.csv
and measured.json. Every row trains the student with the loss `kd` only, so rows differ in the images only.
`random` uses images of the pool, and `untrained` a generator that never learns. The generators' networks have half
their default width.
"""

import inspect
import sys
from pathlib import Path

from losses import SETTINGS, measure

from dfkd import generators

CHANGED = {"digits": {"seeds": [0, 1]}, "cifar10": {"steps": 600}}
WIDTH = 32
"""Width of the generators' networks, half the default, because a step is then cheaper in these short trainings."""


def rows():
    """Return the options of every row."""
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
