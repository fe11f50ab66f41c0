"""Keep a comparison as a result file: its CSV in this folder, and beside it what it was measured on.

    python benchmarks/quality/keep.py REPORT.csv NAME 'COMMAND THAT MADE IT'

To be called where the runs ran, with their OMP_NUM_THREADS. docs/make_results.py makes the README's tables of these.
"""

import shutil
import sys
from datetime import date
from pathlib import Path

from dfkd.device import machine, resolve_place
from dfkd.files import replacing, write_json


def measured(command, day):
    """What stands behind a figure: the command, the day, the machine."""
    place = resolve_place("auto", "auto")
    return {"command": command, "date": str(day), **machine(place.device), **place.describe()}


def keep(report, name, command, folder):
    """Copy the CSV `report` to `folder` as NAME.csv and write NAME.json."""
    day = date.fromtimestamp(report.stat().st_mtime)
    with replacing(folder / f"{name}.csv") as partial:
        shutil.copyfile(report, partial)
    write_json(folder / f"{name}.json", measured(command, day))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    keep(Path(sys.argv[1]), *sys.argv[2:], folder=Path(__file__).resolve().parent)
