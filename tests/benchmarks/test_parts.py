"""Scoring by several commands at once, on a few images."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "speed" / "parts.py"


def test_rows_for_scoring_selecting_and_tars(tmp_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path / "parts.json"), "60", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    scored, selected, opened = json.loads((tmp_path / "parts.json").read_text())["rows"]
    assert scored["what"] == "scored by 2 commands at once; by one of 2 threads"
    assert selected["bare"] == scored["bare"] > 0
    assert min(scored["dfkd"], selected["dfkd"], opened["dfkd"], opened["bare"]) > 0
