"""The unattended script of a GPU, with small networks on the processor."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "speed" / "gpu.sh"


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler")
def test_the_script_writes_its_tables_without_data(tmp_path):
    small = {"IMAGES": "32", "STEPS": "1", "TEACHER": "lenet5", "STUDENT": "lenet5_half", "OUT": str(tmp_path)}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DFKD_DATA")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True, check=False, env=environment | small)
    assert done.returncode == 0, done.stderr
    rows = {
        name: json.loads((tmp_path / f"{name}-gpu.json").read_text())["rows"] for name in ("selecting", "distilling")
    }
    assert [row["what"] for row in rows["selecting"]] == ["select, lenet5, images/s"]
    assert len(rows["distilling"]) == 7
    compiled = json.loads((tmp_path / "compiled-gpu.json").read_text())
    whats = [row["what"] for row in compiled["rows"]]
    assert whats == ["teacher's forward", "teacher's forward, frozen", "student's step"]
    for row in compiled["rows"]:  # compiled, the networks answer the same
        assert row["compiled"] > 0 < row["eager"] and row["difference"] < 1e-4
        assert compiled["start_seconds"] > 0 < row["first_seconds"]
