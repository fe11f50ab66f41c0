"""Networks of one's own whose code changes, elsewhere or in what they compute, between two commands."""

import importlib
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dfkd.app import cli
from dfkd.system.code import code_of

NETS = '''
"""Networks of mine."""
import torch
from torch import nn
import torch.nn.functional as F

from pieces import Block
import more_pieces

SLOPE = {"relu": 0.0}
KINDS = {}


def register(kind):
    KINDS[kind.__name__] = kind
    return kind


@register
class Head(nn.Linear):
    pass


class Net(nn.Module):
    """It has a block and a head."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.body = Block()
        self.fc = KINDS["Head"](8, num_classes)  # found by its name

    def forward(self, x):
        x = more_pieces.pooled(self.body(x))
        return self.fc(F.leaky_relu(x, SLOPE["relu"]))


def train(net):
    print(net)


if __name__ == "__main__":
    train(Net())
'''
PIECES = """
from torch import nn

def Block():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
"""
MORE = """
def pooled(x):
    return x.mean((2, 3))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write the files, with replacements. Returns a function that does it again and imports them anew."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)

    def write(*replaced):
        for name, source in {"nets": NETS, "pieces": PIECES, "more_pieces": MORE}.items():
            for old, new in replaced:
                source = source.replace(old, new)
            (tmp_path / f"{name}.py").write_text(source)
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return importlib.import_module("nets")

    yield write
    for name in ("nets", "pieces", "more_pieces"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def train(net):", "def added():\n    return Net()\n\n\ndef train(net):"),
        ("def train(net):", "@torch.no_grad()\ndef added(net):\n    return Net()\n\n\ndef train(net):"),
        ("    print(net)", "    print(net, 1)"),
        ("train(Net())", "train(Net(2))"),
        ("It has a block and a head.", "Other words."),
        ("  # found by its name", ""),
        ('KINDS["Head"]', "KINDS['Head']"),
        ("(x, SLOPE", "(\n            x, SLOPE"),
        ("import torch\n", "import os\nimport torch\n"),
        ("from torch import nn\n\ndef Block", "from torch import nn\n\ndef unused(): pass\n\ndef Block"),
        ("SLOPE = ", "OTHER = 1\nSLOPE = "),
    ],
)
def test_code_of__does_not_heed_what_a_network_does_not_reach(own, old, new):
    """Edits elsewhere in the network's files, and of comments, docstrings and layout."""
    before = code_of(own().Net, "nets.Net")
    assert new in "".join(s.replace(old, new) for s in (NETS, PIECES))
    assert code_of(own((old, new)).Net, "nets.Net") == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.fc(F.", "-self.fc(F."),
        ('{"relu": 0.0}', '{"relu": 0.1}'),
        ("KINDS = {}", 'KINDS = {}\nSLOPE["relu"] = 0.1'),
        ("def train", "Net.forward = lambda self, x: x\n\n\ndef train"),
        ("    pass", "    def forward(self, x):\n        return -super().forward(x)"),
        ("nn.ReLU()", "nn.GELU()"),
        ("x.mean((2, 3))", "x.amax((2, 3))"),
        ("torch.nn.functional as F", "my_functional as F"),
        ("def pooled(x):\n    return", "from math import pi\n\ndef pooled(x):\n    return pi *"),
    ],
)
def test_code_of__heeds_all_that_a_network_reaches(own, old, new, tmp_path):
    """Edits of the class, of constants, of classes found in a table, and of functions in other files."""
    (tmp_path / "my_functional.py").write_text("from torch.nn.functional import *\n")
    before = code_of(own().Net, "nets.Net")
    assert code_of(own((old, new)).Net, "nets.Net") != before


def dfkd(*arguments):
    return cli.main([str(a) for a in arguments])


def test_commands__know_a_network_whose_file_changed_elsewhere(own, tmp_path, capsys):
    """A teacher of one's own, selected with, distilled from and trained as a student, before and after edits."""
    torch.manual_seed(0)
    net = own().Net()
    save_file(net.state_dict(), tmp_path / "t.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(40) % 4)
    teacher = ("--teacher", "nets.Net@t.safetensors")
    given = (*teacher, "--pool", "data.npz", "--image-size", 8)
    assert dfkd("select", *given, "--count", 8, "--out", "s") == 0
    own(("def train(net):", "def added():\n    pass\n\n\ndef train(net):"))
    capsys.readouterr()
    assert dfkd("select", *given, "--count", 8, "--out", "s") == 0
    assert "complete already" in capsys.readouterr().err
    trained = ("--student", "nets.Net", "--samples", "s", "--steps", 2, "--batch-size", 4, "--loss", "kd")
    assert dfkd("distill", *teacher, *trained, "--init", "none", "--out", "r") == 0
    assert "another teacher" not in capsys.readouterr().err
    for edit in (("    print(net)", "    print(1)"), ("x.mean((2, 3))", "-x.mean((2, 3))")):
        own(edit)
        assert dfkd("evaluate", "--model", "r", "--data", "data.npz") == 0
        said = capsys.readouterr().err
        assert ("code of nets.Net has changed since run r was trained" in said) == ("mean" in edit[0])
    assert dfkd("distill", *teacher, *trained, "--init", "none", "--out", "r2") == 0
    assert "s was selected with another teacher" in capsys.readouterr().err
