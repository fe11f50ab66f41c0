"""Commands whose ranks are killed, stopped or wrong: a small part of `benchmarks/reliability/ranks.py`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_ranks__that_are_killed_stopped_or_wrong_lose_nothing(tmp_path):
    """In a process of its own, that has started no threads: ranks are forked from it, and torchrun starts some."""
    small = ("--kills", "2", "--moved", "2", "--wrong", "1", "--launched", "2", "--seed", "3", "--scenarios", "distill")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.reliability.ranks", tmp_path / "ranks.json", *small],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "ranks.json").read_text())["scenarios"]["distill"]
    tried = {"killed": 2, "stopped": 1, "wrong": 1, "moved": 3, "launched": 1, "launcher": 1}
    assert figures["survived"] == figures["tried"] == tried
