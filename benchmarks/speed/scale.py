"""Growth of time and memory with the number of images: `select`, near-duplicates, clusters, and the start of `distill`.

    python benchmarks/speed/scale.py OUT.json [LARGEST]      default: 1,000,000 images

The pool is noise of 32 pixels, at most 100,000 images, which are listed several times. The teacher is a LeNet-5, so
that most of the time is outside the network. Every command has its own process, and its time includes imports. Noise
has no near-duplicates, so this search gets features made for it (`photos`). The folders take 8 GB for a million images.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import faiss
import numpy as np
import torch
from safetensors.torch import save_file

from dfkd.models import lenet5
from dfkd.select import diversity
from dfkd.system.device import machine, resolve_place

COMMAND = (sys.executable, "-c", "from dfkd.app.cli import entry; entry()")
FILE = 100_000
WIDTH = 128


def command(folder, *arguments):
    """Return seconds and peak bytes of one `dfkd` command: its own memory, and the resident memory with mapped files.

    Raises: RuntimeError with its output if it fails.
    """
    peak = {"RssAnon": 0, "VmHWM": 0}
    with (folder / "log").open("wb") as log:
        started = time.perf_counter()
        environment = {**os.environ, "DFKD_CACHE": str(folder / "cache")}
        child = subprocess.Popen([*COMMAND, *map(str, arguments)], stdout=log, stderr=log, env=environment)
        while child.poll() is None:  # ru_maxrss would count this process's memory from before the child's exec
            status = Path(f"/proc/{child.pid}/status").read_text()
            for name in peak:
                kilobytes = re.search(rf"{name}:\s+(\d+) kB", status)
                peak[name] = max(peak[name], 1024 * int(kilobytes[1]) if kilobytes else 0)
            time.sleep(0.02)
        seconds = time.perf_counter() - started
    if child.returncode:
        raise RuntimeError((folder / "log").read_text())
    return {"seconds": round(seconds, 2), "own_peak_bytes": peak["RssAnon"], "resident_peak_bytes": peak["VmHWM"]}


def sizes_up_to(largest):
    """Return 10,000, 100,000, ... and the largest size. Below 10,000, return a tenth of the largest and the largest."""
    powers = [size for size in (10_000, 30_000, 100_000, 300_000, 1_000_000) if size < largest]
    return [*(powers or [largest // 10]), largest]


def measure_commands(folder, sizes):
    """Return rows of `select` of all images at several sizes, and of one step of `distill` on the largest selection."""
    torch.manual_seed(0)
    save_file(lenet5(num_classes=10, in_channels=3).state_dict(), folder / "teacher.safetensors")
    teacher = ("--teacher", f"lenet5:in_channels=3,num_classes=10@{folder / 'teacher.safetensors'}")
    for size in {min(size, FILE) for size in sizes}:
        images = np.random.default_rng(0).integers(0, 256, (size, 32, 32, 3), dtype=np.uint8)
        np.savez(folder / f"{size}.npz", images=images)
    rows = []
    for size in sizes:
        files = [folder / f"{min(size, FILE)}.npz"] * -(-size // FILE)
        samples = folder / f"selected-{size}"
        options = ("--image-size", 32, "--method", "confidence", "--count", size, "--out", samples, "--pool", *files)
        rows.append({"what": "select", "images": size, **command(folder, "select", *teacher, *options)})
        print(rows[-1], flush=True)
    student = ("--student", "lenet5_half", "--init", "none", "--loss", "kd")
    options = (*student, "--samples", samples, "--steps", 1, "--out", folder / "run")
    rows.append({"what": "distill, one step", "images": sizes[-1], **command(folder, "distill", *teacher, *options)})
    rows.append({"what": "--help", "images": 0, **command(folder, "distill", "--help")})
    print(*rows[-2:], sep="\n", flush=True)
    return rows


def photos(count, seed=0):
    """Return features like those of photos: 100 clusters, few directions, rectified.

    A twentieth of the rows are copies with 5 % of noise.
    """
    rng = np.random.default_rng(seed)
    directions, centers = (rng.normal(size=shape).astype(np.float32) for shape in ((24, WIDTH), (100, 24)))
    where = centers[rng.integers(0, 100, count)] + rng.standard_normal((count, 24), dtype=np.float32)
    features = np.maximum(where @ directions, 0)
    copies = count // 20
    features[-copies:] = features[:copies] * (1 + 0.05 * rng.standard_normal((copies, WIDTH), dtype=np.float32))
    return features


def measure_diversity(sizes):
    """Return rows of the near-duplicate search at 0.99 and of 100 clusters: seconds, and share of the copies found."""
    rows = []
    for size in sizes:
        features = photos(size)
        started = time.perf_counter()
        dropped = diversity.near_duplicates(features, 0.99)
        searched = time.perf_counter()
        diversity.clusters(features, 100, seed=0)
        times = {
            "near_duplicates_seconds": round(searched - started, 3),
            "clusters_seconds": round(time.perf_counter() - searched, 3),
        }
        found = {"copies_found": float(dropped[-(size // 20) :].mean()), "dropped": int(dropped.sum())}
        if size <= 2 * diversity.EXACT_UP_TO:
            found["of_exact"] = share_of_exact(features, dropped)
        rows.append({"what": "diversity", "images": size, **times, **found})
        print(rows[-1], flush=True)
    return rows


def share_of_exact(features, dropped):
    """Return the share of the exactly found near-duplicates that the search in use finds, too."""
    limit, diversity.EXACT_UP_TO = diversity.EXACT_UP_TO, len(features)
    try:
        exact = diversity.near_duplicates(features, 0.99)
    finally:
        diversity.EXACT_UP_TO = limit
    return float((exact & dropped).sum() / exact.sum())


def exponent(rows, key):
    """Return the slope of log time over log size.

    Only sizes above the limit of the exact search count, where neither another algorithm nor imports decide the time.
    """
    pairs = [(row["images"], row[key]) for row in rows if row["images"] > diversity.EXACT_UP_TO]
    if len(pairs) < 2:
        return None
    return round(float(np.polyfit(*np.log(np.array(pairs, dtype=float).T), 1)[0]), 3)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    out, largest = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    faiss.omp_set_num_threads(torch.get_num_threads())
    sizes = sizes_up_to(largest)
    diverse = measure_diversity(sizes)
    with tempfile.TemporaryDirectory() as folder:
        commands = measure_commands(Path(folder), sizes)
    selects = [row for row in commands if row["what"] == "select"]
    exponents = {
        "select": exponent(selects, "seconds"),
        "near_duplicates": exponent(diverse, "near_duplicates_seconds"),
        "clusters": exponent(diverse, "clusters_seconds"),
    }
    print(exponents)
    measured_on = machine(resolve_place("cpu", "auto").device)
    result = {"command": "benchmarks/speed/scale.py", "date": str(date.today()), **measured_on}
    out.write_text(json.dumps({**result, "exponents": exponents, "rows": [*commands, *diverse]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
