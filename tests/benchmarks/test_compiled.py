"""What compiling gives and costs, on a linear layer: what is compiled takes seconds for every layer more."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "speed" / "compiled.py"
NETWORK = """
from torch import nn

def linear(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))
"""


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler")
def test_compiled_measures_gain_and_cost(tmp_path):
    (tmp_path / "tiny.py").write_text(NETWORK)
    command = [sys.executable, str(SCRIPT), str(tmp_path / "compiled.json"), "tiny.linear", "tiny.linear"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "compiled.json").read_text())
    assert [row["what"] for row in result["rows"]] == [
        "teacher's forward",
        "teacher's forward, frozen",
        "student's step",
    ]
    for row in result["rows"]:
        assert row["compiled"] > 0 < row["eager"] and row["difference"] < 1e-4
        assert result["start_seconds"] > 0 < row["first_seconds"]
