"""The simulation of a very large pool, on 40,000 images."""

import contextlib
import io
import json
import subprocess
import sys


def test_choosing_measures_every_part_of_the_last_command(tmp_path, script, monkeypatch):
    """Its rows are computed in this process: each start of another one would take seconds."""
    choosing = script("choosing", "speed")

    def run(command, stdout, check):
        assert command[:3] == [sys.executable, choosing.__file__, "child"]
        with contextlib.redirect_stdout(io.StringIO()) as told:
            choosing.child(*command[3:])
        return subprocess.CompletedProcess(command, 0, told.getvalue())

    monkeypatch.setattr(choosing.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["choosing.py", str(tmp_path / "choosing.json"), "40000"])
    assert choosing.main() is None
    rows = {(row["what"], row["images"]): row for row in json.loads((tmp_path / "choosing.json").read_text())["rows"]}
    assert rows["threshold", 40_000]["selected"] == rows["merge", 40_000]["selected"] == 20_000
    for method in ("threshold", "statistics"):
        assert rows[method, 16_384]["sha256"] == rows[f"{method}, in memory", 16_384]["sha256"]
    assert [path.name for path in tmp_path.iterdir()] == ["choosing.json"]
