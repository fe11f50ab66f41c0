"""The growth of time and memory, on pools of 200 and 2,000 images."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "speed" / "scale.py"


def test_scale_measures_commands_and_the_search(tmp_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path / "scale.json"), "2000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "scale.json").read_text())
    selects = [row for row in result["rows"] if row["what"] == "select"]
    assert [row["images"] for row in selects] == [200, 2000]
    assert all(row["own_peak_bytes"] > 10**8 < row["resident_peak_bytes"] for row in selects)
    searches = [row for row in result["rows"] if row["what"] == "diversity"]
    assert all(row["copies_found"] == 1.0 and row["of_exact"] == 1.0 for row in searches)
