"""What two processes compute, once for all tests: `together.py` is a program of its own that starts them."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def computed(tmp_path_factory):
    """What one process computes, and each of two: tensors by kind and name, then by what they are."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "together"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "one.pt").exists():
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, str(Path(__file__).with_name("together.py")), str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            assert done.returncode == 0, done.stderr
    return [torch.load(folder / name, weights_only=True) for name in ("one.pt", "rank0.pt", "rank1.pt")]
