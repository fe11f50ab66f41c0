"""What the benchmarks against bare loops share: times, rows of medians, and the table and file that they end in."""

import json
import time
from datetime import date
from statistics import median

from dfkd.device import machine, resolve_place


def seconds(function):
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def row(name, rounds):
    """Medians of rounds that hold (what dfkd did, what the bare loop did) a second."""
    ratios = [ours / bare for ours, bare in rounds]
    return {
        "what": name,
        "dfkd": round(median(ours for ours, _ in rounds), 2),
        "bare": round(median(bare for _, bare in rounds), 2),
        "ratio": round(median(ratios), 3),
        "ratios": [round(r, 3) for r in ratios],
    }


def report(out, command, rows):
    """Print the rows and write them as JSON."""
    for r in rows:
        print(f"{r['what']:<60}{r['dfkd']:>10.1f}{r['bare']:>10.1f}{r['ratio']:>8.3f}")
    measured_on = machine(resolve_place("auto", "auto").device)
    result = {"command": command, "date": str(date.today()), **measured_on, "rows": rows}
    out.write_text(json.dumps(result, indent=2) + "\n")
