"""What a command waits for before its first step."""

import json
import subprocess
import sys

PROGRAM = """
import json, sys, torch
from dfkd.app import cli
from dfkd.distill.init import reconstruct
from dfkd.select import filters
from dfkd.training.optim import make_optimizer
for kind in ("sgd", "adamw"):  # one that goes on from a checkpoint, too
    net = torch.nn.Linear(2, 2)
    optimizer = make_optimizer([net], kind, 0.1)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
reconstruct._IMAGES, filters._STEPS = 64, 2
for arguments in json.loads(sys.argv[1]):
    if status := cli.main(arguments):
        sys.exit(status)
    found = [name for name in ("torch._dynamo", "datasets", "pandas", "torchvision", "sklearn") if name in sys.modules]
    print(json.dumps(found))
"""


def imported(*commands):
    """What is imported in a process after each of some commands, of what takes as long as torch, or longer."""
    arguments = json.dumps([[str(argument) for argument in command] for command in commands])
    done = subprocess.run([sys.executable, "-c", PROGRAM, arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def test_commands__import_nothing_heavy_but_torch(lab, selection, tmp_path):
    """A training, also with a generator; a selection does not import the compiler, though it fits a filter."""
    student = ("--student", "cifar_resnet:depth=8,width=4", "--steps", 2, "--batch-size", 8, "--samples", selection)
    distill = ["distill", "--teacher", lab.teacher, *student, "--out"]
    beside = [*distill, tmp_path / "beside", "--source", "dafl:latent=4,width=2", "--init", "none"]
    select = ["select", "--teacher", lab.teacher, *lab.flags, "--pool", lab.pool, "--filter", "fitted", "--out"]
    trained, generated, selected = imported([*distill, tmp_path / "run"], beside, [*select, tmp_path / "selection"])
    assert trained == generated == []
    assert "torch._dynamo" not in selected
