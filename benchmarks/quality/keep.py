"""Keep a comparison as a result file: its CSV, and beside it the command, date and machine.

    python benchmarks/quality/keep.py REPORT.csv benchmarks/quality/results/NAME.csv 'COMMAND THAT MADE IT'

Run it on the machine of the runs, with their OMP_NUM_THREADS. docs/make_results.py makes tables from these files.
"""

import shutil
import sys
from datetime import date
from pathlib import Path

from dfkd.system.device import machine, resolve_place
from dfkd.system.files import replacing, write_json


def keep(report, target, command):
    """Copy the CSV `report` to `target`, and write the command, its date and the machine beside it."""
    place = resolve_place("auto", "auto")
    day = date.fromtimestamp(report.stat().st_mtime)
    with replacing(target) as partial:
        shutil.copyfile(report, partial)
    about = {"command": command, "date": str(day), **machine(place.device), **place.describe()}
    write_json(target.with_suffix(".json"), about)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    keep(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
