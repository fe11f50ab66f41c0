"""A pool scored by several commands at once (`dfkd select --part`) against one command with as many threads; tars.

    python benchmarks/speed/parts.py OUT.json [IMAGES] [COMMANDS]      default: 131,072 images, 2 commands

The first row has images per second, imports included, of a ResNet-20 of width 32; each concurrent command has one
thread. The second row is the later command without `--part`, which selects 1,000 images. The third row opens a tar of
IMAGES members for the first time and again. Rounds alternate. The script prints medians.
"""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from ratios import images, report, row, seconds, untrained
from scale import COMMAND
from selecting import ROUNDS

from dfkd.data.readers.tar import TarReader

TEACHER = "cifar_resnet:depth=20,width=32,num_classes=10,in_channels=3"
MEMBER = bytes(2048)
"""Content as long as a small JPEG file. Only its header is read here."""


def at_once(cache, threads, *commands):
    """Run `dfkd` commands at the same time.

    Returns the seconds. Raises: RuntimeError with the output of one that fails.
    """
    started = time.perf_counter()
    environment = {**os.environ, "DFKD_CACHE": str(cache), "OMP_NUM_THREADS": str(threads)}
    running = [
        subprocess.Popen([*COMMAND, *map(str, command)], env=environment, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    said = [process.communicate()[1] for process in running]
    for process, text in zip(running, said, strict=True):
        if process.returncode:
            raise RuntimeError(text)
    return time.perf_counter() - started


def measure_select(folder, count, commands):
    """Return the rows of scoring, and of selecting afterwards."""
    np.savez(folder / "pool.npz", images=np.resize(images(min(count, 100_000)), (count, 32, 32, 3)))
    how = ("--normalize", "cifar10", "--filter", "none", "--method", "confidence", "--count", min(count, 1000))
    select = ("select", "--teacher", untrained(TEACHER, folder), *how, "--pool", folder / "pool.npz")
    scored, selected = [], []
    for number in range(ROUNDS):
        cache, out = folder / f"cache{number}", folder / f"apart{number}"
        shares = [(*select, "--out", out, "--part", f"{k + 1}/{commands}") for k in range(commands)]
        apart = at_once(cache, 1, *shares)
        last = at_once(cache, commands, (*select, "--out", out))
        one = (*select, "--out", folder / f"one{number}", "--part", "1/1")
        whole = at_once(folder / f"cache-one{number}", commands, one)
        scored.append((count / apart, count / whole))
        selected.append((count / last, count / whole))
    return [
        row(f"scored by {commands} commands at once; by one of {commands} threads", scored),
        row("selected afterwards; the same", selected),
    ]


def measure_tar(folder, count):
    """Return the row of opening a tar again, and for the first time."""
    os.environ["DFKD_CACHE"] = str(folder / "cache-tar")
    with tarfile.open(folder / "x.tar", "w") as tar:
        for number in range(count):
            member = tarfile.TarInfo(f"{number:09d}.jpg")
            member.size = len(MEMBER)
            tar.addfile(member, io.BytesIO(MEMBER))
    opened = []
    for number in range(ROUNDS):
        path = (folder / f"x{number - 1 if number else ''}.tar").rename(folder / f"x{number}.tar")  # not in the cache
        first, again = (seconds(partial(TarReader, path)) for _ in range(2))
        opened.append((count / again, count / first))
    return row("members of a tar opened again; for the first time", opened)


def main():
    if not 2 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 131_072
    commands = int(sys.argv[3]) if len(sys.argv) > 3 else 2
    with tempfile.TemporaryDirectory() as folder:
        rows = [*measure_select(Path(folder), count, commands), measure_tar(Path(folder), count)]
    report(Path(sys.argv[1]), "benchmarks/speed/parts.py", rows)


if __name__ == "__main__":
    main()
