"""The growth of time and memory, on pools of 200 and 2,000 images."""

import json
import subprocess
import sys
import tarfile
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


def test_scale_of_photographs_writes_tars_and_runs_each_command_on_both(tmp_path, data, script, monkeypatch):
    scale = script("scale", "speed")
    ran = []
    monkeypatch.setattr(scale, "command", lambda folder, *arguments: ran.append(arguments) or {"seconds": 1})
    monkeypatch.setattr(scale, "KINDS", 2)
    monkeypatch.setenv("DFKD_DATA", str(data))
    rows = scale.measure_photos(tmp_path, 8)
    assert [(row["images"], arguments[0]) for row, arguments in zip(rows, ran, strict=True)] == [
        (size, name) for size in (2, 8) for name in ("select", "select", "distill")
    ]
    with tarfile.open(tmp_path / "8.tar") as tar:
        assert len(tar.getnames()) == 8
