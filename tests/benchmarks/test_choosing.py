"""The simulation of a very large pool, on 40,000 images."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "speed" / "choosing.py"


def test_choosing_measures_every_part_of_the_last_command(tmp_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path / "choosing.json"), "40000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {(row["what"], row["images"]): row for row in json.loads((tmp_path / "choosing.json").read_text())["rows"]}
    assert rows["threshold", 40_000]["selected"] == rows["merge", 40_000]["selected"] == 20_000
    for method in ("threshold", "statistics"):
        assert rows[method, 16_384]["sha256"] == rows[f"{method}, in memory", 16_384]["sha256"]
    assert [path.name for path in tmp_path.iterdir()] == ["choosing.json"]
