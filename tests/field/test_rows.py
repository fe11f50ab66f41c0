"""Pipelines of which a stage fails: the others are done, report and exit status tell it."""

import csv
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dfkd.app import cli
from dfkd.config.stage_table import Stage
from dfkd.distill.trainer import Trainer
from dfkd.models import cifar_resnet

FILE = """
out = "out"
[defaults]
teacher = "cifar_resnet:depth=8,width=4@t.safetensors"
normalize = "none"
image-size = 8
precision = "fp32"
pool = ["pool.npz"]
student = "cifar_resnet:depth=8,width=4"
init = "none"
loss = ["kd"]
steps = 3
batch-size = 4
[select.some]
method = "random"
count = 8
[select.others]
method = "confidence"
count = 8
[distill.sound]
samples = ["some"]
[distill.second]
samples = ["others"]
[distill.wild]
samples = ["some"]
lr = 1e30
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_file(cifar_resnet(depth=8, width=4, num_classes=4).state_dict(), tmp_path / "t.safetensors")
    np.savez("pool.npz", images=np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))
    path = tmp_path / "f.toml"
    path.write_text(FILE)
    return path


def complete(file):
    return sorted(path.parent.name for path in file.parent.glob("out/runs/*/result.json"))


def test_run__does_the_rows_beside_one_that_diverges(file, capsys, monkeypatch):
    """A row whose loss is no longer finite, mended by another value in the file."""
    assert cli.main(["run", str(file)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "of 5 stages 4 are complete; failed: wild-seed0: " in said and "no longer finite" in said
    assert "give --lr below 1e+30: the run then starts anew" in said
    assert complete(file) == ["second-seed0", "sound-seed0"]
    page = (file.parent / "out/report.html").read_text()
    assert "wild-seed0 failed and is not in the table" in page and "no longer finite" in page
    assert cli.main(["run", str(file), "--only", "sound"]) == 0
    assert "wild-seed0 failed" in (file.parent / "out/report.html").read_text()
    file.write_text(FILE.replace("lr = 1e30", "lr = 0.01"))
    capsys.readouterr()
    trained, advance = [], Trainer.advance
    monkeypatch.setattr(Trainer, "advance", lambda self: trained.append(self.plan.lr) or advance(self))
    assert cli.main(["run", str(file)]) == 0
    assert trained == [0.01] * 3
    assert "another request failed there (the loss is no longer finite" in capsys.readouterr().err
    assert complete(file) == ["second-seed0", "sound-seed0", "wild-seed0"]
    with (file.parent / "out/report.csv").open() as stream:
        assert {row["name"] for row in csv.DictReader(stream)} == {"second", "sound", "wild"}
    assert "failed" not in (file.parent / "out/report.html").read_text()
    rows = (file.parent / "out/runs/wild-seed0/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [3]
    assert not list(file.parent.glob("out/runs/*/failed.json"))


@pytest.mark.parametrize("kind", ["refused", "defect"])
def test_run__does_the_rows_that_do_not_need_what_failed(file, capsys, monkeypatch, kind):
    """A selection that cannot be made, by the request or by a defect, and the rows of it and of others."""
    text = FILE.replace('method = "confidence"', 'method = "own_choice.mine"')
    file.write_text(text)
    (file.parent / "own_choice.py").write_text("def mine(scores, rng):\n    raise ValueError('not today')\n")
    monkeypatch.syspath_prepend(file.parent)
    if kind == "defect":
        ours = {"__name__": "dfkd.broken", "run": Stage.run}
        key = "'today' * (s.name == 'select' and 'others' in c.out)"
        exec(f"def broken(s, c):\n    {{'': 0}}[{key}]\n    return run(s, c)", ours)
        monkeypatch.setattr(Stage, "run", ours["broken"])
        with pytest.raises(KeyError, match="today"):
            cli.main(["run", str(file)])
    else:
        assert cli.main(["run", str(file)]) == 2
        assert "; second-seed0 need what failed" in capsys.readouterr().err.splitlines()[-1]
    assert complete(file) == ["sound-seed0"]
    page = (file.parent / "out/report.html").read_text()
    assert "others-seed0 failed" in page and "today" in page and "it needs others-seed0" in page


def test_distill__keeps_a_run_that_did_not_fail(file, capsys):
    """A run that is complete, or was stopped, asked for with other options."""
    assert cli.main(["run", str(file), "--only", "sound"]) == 0
    file.write_text(FILE.replace("[distill.sound]", "[distill.sound]\nlr = 0.01"))
    assert cli.main(["run", str(file), "--only", "sound"]) == 2
    assert "sound-seed0: --out out/runs/sound-seed0 holds another run: options.lr" in capsys.readouterr().err
    (file.parent / "out/runs/sound-seed0/result.json").unlink()
    assert cli.main(["run", str(file), "--only", "sound"]) == 2
    assert "holds another run: options.lr" in capsys.readouterr().err
