"""Shared parts of the benchmarks against bare loops: images, networks, times, rows of medians, table and file."""

import json
import os
import time
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np
import torch
from safetensors.torch import save_file

from dfkd.models.load import load_model
from dfkd.system.device import machine, resolve_place


def seconds(function):
    """Return the seconds of a call, with a wait for the device."""
    started = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def images(count):
    """Return the first images of the pool in DFKD_DATA. Without it, return noise, which takes the same time."""
    if "DFKD_DATA" not in os.environ:
        return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    pool = np.load(Path(os.environ["DFKD_DATA"]) / "pool_tiny_imagenet_32.npz", mmap_mode="r")["images"]
    return np.ascontiguousarray(pool[:count])


def untrained(name, folder):
    """Write random weights of a teacher, which take the same time as trained ones. Returns the MODEL text."""
    torch.manual_seed(0)
    path = folder / f"{name.partition(':')[0]}.safetensors"
    save_file(load_model(name, classes=10, channels=3).module.state_dict(), path)
    return f"{name}@{path}"


def row(name, rounds):
    """Return a row of medians. `rounds` are pairs of rates: that of dfkd and that of the bare loop."""
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
