"""Commands whose work Ray shares, against one process: a program, because Ray leaves its processes to the interpreter.

python ray_together.py FOLDER. Two workers, on this machine.
"""

import importlib
import os
import sys
from pathlib import Path

import numpy as np
import torch

NETS = """
import os
import signal
from pathlib import Path

from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=5, in_channels=3):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 8, 4)
        self.linear = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.linear(self.conv(x).flatten(1))

class Deadly(Net):
    def forward(self, x):
        killed = Path(__file__).with_name("killed")
        if str(os.getpid()) != os.environ["COMMAND"] and len(x) == 256 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)
"""
PIPELINE = """
out = "{out}"
[defaults]
teacher = "ray_nets.Net@{folder}/weights.pt"
pool = ["{folder}/pool.npz"]
normalize = "0.5/0.5"
image-size = 4
precision = "fp32"
student = "ray_nets.Net"
steps = 5
[select.some]
method = "confidence"
count = 200
[distill.kd]
samples = ["some"]
[distill.more]
samples = ["some"]
student = "{out}/runs/kd-seed0"
[distill.none]
samples = ["some"]
loss = ["ofd"]
"""


def prepare(folder: Path) -> None:
    """Networks that workers can import, and a pool of three pieces; Ray, started with two cores."""
    (folder / "ray_nets.py").write_text(NETS)
    np.savez(folder / "pool.npz", images=np.random.default_rng(0).integers(0, 256, (40_000, 4, 4, 3), np.uint8))
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}{folder}"
    os.environ["COMMAND"] = str(os.getpid())
    torch.manual_seed(0)
    torch.save(importlib.import_module("ray_nets").Net().state_dict(), folder / "weights.pt")


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def select(folder: Path, network: str, cache: str, out: str, *more: str) -> None:
    from dfkd.app import cli

    os.environ["DFKD_CACHE"] = str(folder / cache)
    teacher = (
        "--teacher",
        f"ray_nets.{network}@{folder / 'weights.pt'}",
        "--normalize",
        "0.5/0.5",
        "--image-size",
        "4",
    )
    options = ("--pool", str(folder / "pool.npz"), "--precision", "fp32", "--count", "1000")
    assert cli.main(["select", *teacher, *options, "--out", str(folder / out), *more]) == 0


def check_scoring(folder: Path) -> None:
    """Two workers, of which one is killed, give the bytes of one process; with the scores no worker is started."""
    select(folder, "Deadly", "cache-one", "one")
    select(folder, "Deadly", "cache-many", "many", "--engine", "ray", "--workers", "2")
    assert (folder / "killed").exists()
    assert tree(folder / "many") == tree(folder / "one")


def check_cache(folder: Path) -> None:
    """The scores of a worker that does not see the cache come through Ray."""
    from dfkd.select import ray_scorer

    ray_scorer.environment = lambda: {"runtime_env": {"env_vars": {"DFKD_CACHE": str(folder / "elsewhere")}}}
    more = ("--deduplicate", "0.999999", "--filter", "blur:sigma=0.5")
    select(folder, "Net", "cache-here", "far", "--engine", "ray", "--workers", "1", *more)
    for where in ("elsewhere", "cache-here"):
        assert len(list((folder / where).rglob("scores-*.parquet"))) == 3
        assert len(list((folder / where).rglob("features-*.parquet"))) == 3


def check_pipeline(folder: Path) -> None:
    """Stages as tasks give the runs of one process, in an order in which each finds what it needs."""
    from dfkd.app import cli

    def run(name: str, *more: str) -> int:
        file = folder / f"{name}.toml"
        file.write_text(PIPELINE.format(out=folder / name, folder=folder))
        return cli.main(["run", str(file), *more])

    os.environ["DFKD_CACHE"] = str(folder / "cache-pipeline")
    assert run("tasks", "--engine", "ray") == 2  # one stage has a loss that does not go with the network
    assert run("alone", "--only", "kd") == 0
    ours, theirs = (folder / name / "runs" / "kd-seed0" / "student.safetensors" for name in ("tasks", "alone"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert (folder / "tasks" / "runs" / "more-seed0" / "result.json").exists()
    assert (folder / "tasks" / "report.html").exists()


def main(folder: Path) -> None:
    prepare(folder)
    from dfkd.system import ray_session

    ray_session.CORES = 2
    with ray_session.connected():
        check_scoring(folder)
        check_cache(folder)
        check_pipeline(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
