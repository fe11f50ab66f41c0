"""The unattended script of a GPU: its commands, and those parts of them that no other test runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "speed" / "gpu.sh"


def test_the_script_gives_every_command_its_file_and_the_paper_s_pair(tmp_path):
    """`python` is one that writes down what it is given."""
    fake = tmp_path / "bin" / "python"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "told"}\n')
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}", "OUT": "made", "STEPS": "7"}
    for name in ("IMAGES", "TEACHER", "STUDENT"):
        environment.pop(name, None)
    subprocess.run(["bash", SCRIPT.name], cwd=SCRIPT.parent, check=True, env=environment)
    assert (tmp_path / "told").read_text().splitlines() == [
        "./selecting.py made/selecting-gpu.json 100000 0 resnet34_small",
        "./distilling.py made/distilling-gpu.json 7 resnet34_small resnet18_small",
        "./decoding.py made/decoding-gpu.json 256 nvjpeg",
        "./compiled.py made/compiled-gpu.json resnet34_small resnet18_small",
    ]


def test_selecting_takes_another_network_and_no_files(tmp_path, script, monkeypatch):
    selecting = script("selecting", "speed")
    monkeypatch.setattr(selecting, "ROUNDS", 1)
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["selecting.py", str(tmp_path / "out.json"), "32", "0", "lenet5"])
    selecting.main()
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["what"] for row in rows] == ["select, lenet5, images/s"]


DRIVER = """
import runpy, sys, torch
compiler = torch.compile
torch.compile = lambda network, options=None: compiler(network, backend="aot_eager")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Compiled without code in C++, which takes a minute: the script's own part is the same."""


def test_compiled_networks_answer_the_same_and_have_a_row_each(tmp_path):
    """In a process of its own, without the types that tests check, which the compiler would follow."""
    command = [sys.executable, "-c", DRIVER, str(SCRIPT.parent / "compiled.py"), str(tmp_path / "out.json")]
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent)}
    done = subprocess.run([*command, "lenet5", "lenet5_half"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "out.json").read_text())
    assert [row["what"] for row in made["rows"]] == ["teacher's forward", "teacher's forward, frozen", "student's step"]
    for row in made["rows"]:
        assert row["compiled"] > 0 < row["eager"]
        assert row["difference"] < 1e-4
        assert made["start_seconds"] >= 0 < row["first_seconds"]
