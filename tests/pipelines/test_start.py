"""What a command waits for before its first step."""

import json
import subprocess
import sys

PROGRAM = """
import json, sys
from dfkd.app import cli
for arguments in json.loads(sys.argv[1]):
    if status := cli.main(arguments):
        sys.exit(status)
print(*[name for name in ("torch._dynamo", "datasets", "pandas", "torchvision", "sklearn") if name in sys.modules])
"""


def imported(*commands):
    """What is imported in a process by some commands, of what takes as long as torch, or longer."""
    arguments = json.dumps([[str(argument) for argument in command] for command in commands])
    done = subprocess.run([sys.executable, "-c", PROGRAM, arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_distill_imports_nothing_heavy_but_torch_also_with_a_generator(lab, selection, tmp_path):
    flags = ("--student", "cifar_resnet:depth=8,width=4", "--steps", 2, "--samples", selection)
    command = ["distill", "--teacher", lab.teacher, *flags, "--out"]
    assert imported([*command, tmp_path / "run"], [*command, tmp_path / "2", "--source", "dafl:latent=4,width=2"]) == []


def test_select_does_not_import_the_compiler_though_it_fits_a_filter(lab, tmp_path):
    command = ["select", "--teacher", lab.teacher, *lab.flags, "--pool", lab.pool, "--filter", "fitted"]
    assert "torch._dynamo" not in imported([*command, "--out", tmp_path / "out"])
