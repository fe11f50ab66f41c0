"""What the scripts of this folder share: time of a call, and a row of ratios."""

import time
from statistics import median


def seconds(function):
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def row(name, rounds):
    ratios = [ours / bare for ours, bare in rounds]
    return {
        "what": name,
        "dfkd": round(median(ours for ours, _ in rounds), 2),
        "bare": round(median(bare for _, bare in rounds), 2),
        "ratio": round(median(ratios), 3),
        "ratios": [round(r, 3) for r in ratios],
    }
