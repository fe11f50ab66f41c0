"""What the reports wait for before they read a file."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

PROGRAM = """
import json, sys
from dfkd.app import cli
for arguments in json.loads(sys.argv[1]):
    if status := cli.main([*arguments, "--quiet"]):
        sys.exit(status)
    print(json.dumps(sorted({"torch", "datasets", "torchvision"} & sys.modules.keys())))
"""


def test_reports__that_need_no_network_do_not_import_torch(make_run, make_selection, tmp_path: Path) -> None:
    runs = [make_run("row", seed) for seed in (0, 1)]
    make_selection(tmp_path / "selection", [0, 0, 2], 3)
    np.savez(tmp_path / "pool.npz", images=np.zeros((5, 4, 4, 3), np.uint8))
    selection = ["inspect", str(tmp_path / "selection"), "--pool", str(tmp_path / "pool.npz")]
    commands = (
        ["compare", *runs, "--out", str(tmp_path / "compared.html")],
        [*selection, "--out", str(tmp_path / "inspected.html")],
        ["inspect", str(tmp_path / "selection"), "--verify"],
    )
    done = subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(commands)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("[")] == ["[]"] * 3
