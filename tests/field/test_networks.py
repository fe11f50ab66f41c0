"""Networks from elsewhere: whatever a foreign network does, the answer is the right result or one line."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dfkd.app import cli
from dfkd.models.features.taps import Tapped
from dfkd.system.errors import RequestError

PLAIN = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes=5, in_channels=3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4))
        self.fc = nn.Linear(32, num_classes)

    def features(self, x):
        return self.body(x).flatten(1)

    def forward(self, x):
        return self.fc(self.features(x))
"""


class Bench:
    """A module `foreign` with a network, its weights and labeled images, and the real commands."""

    def __init__(self, folder):
        self.folder = folder

    def net(self, code, side=8, channels=3):
        """Write the module, random weights, and images whose labels are the network's own answers."""
        (self.folder / "foreign.py").write_text(PLAIN + code)
        sys.modules.pop("foreign", None)
        import foreign  # type: ignore[import-not-found]

        torch.manual_seed(0)
        net = foreign.Net().eval()
        last = [layer for layer in net.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))][-1]
        images = np.random.default_rng(0).integers(0, 256, (60, side, side, channels), dtype=np.uint8)
        x = ((torch.from_numpy(images) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2).contiguous()
        with torch.no_grad():
            if hasattr(net, "logits"):
                last.bias -= net.logits(x).mean(0)
            labels = (net.logits(x) if hasattr(net, "logits") else net(x)).argmax(1).numpy()
        torch.save(net.state_dict(), self.folder / "w.pt")
        np.savez(self.folder / "data.npz", images=images if channels > 1 else images[..., 0], labels=labels)
        return f"foreign.Net@{self.folder / 'w.pt'}"

    def dfkd(self, command, *arguments):
        """Run a command; its exit status."""
        return cli.main([command, *map(str, arguments)])

    def accuracy(self, model, *more, side=8):
        """The share of the labels that `dfkd evaluate` finds."""
        out = self.folder / "figures.json"
        flags = ("--normalize", "0.5/0.5", "--image-size", side, "--json", out, "--precision", "fp32", *more)
        assert self.dfkd("evaluate", "--model", model, "--data", self.folder / "data.npz", *flags) == 0
        return json.loads(out.read_text())["top1"]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    yield Bench(tmp_path)
    sys.modules.pop("foreign", None)


RETURNS = """
    def logits(self, x):
        return self.fc(self.features(x))

    def forward(self, x):
        features = self.features(x)
        logits = self.fc(features)
        return {}
"""


@pytest.mark.parametrize(
    "returned",
    [
        "logits, {'features': features}",
        "features, logits",
        "{'out': logits, 'maps': x}",
        "{'aux': logits * 0, 'logits': logits}",
        "type('Output', (), {})()",
    ],
)
def test_load_model__takes_the_logits_among_what_a_network_returns(bench, capsys, returned):
    """Networks that return a tuple, a dictionary or an object that holds the logits."""
    code = RETURNS.format(returned)
    if "type(" in returned:
        code = code.replace("return type(", "o = type(") + "        o.logits = logits\n        return o\n"
    model = bench.net(code)
    assert bench.accuracy(model) == 1.0
    said = capsys.readouterr().err
    assert "note: model 'foreign.Net@w.pt' returns a" in said and "is taken as the 5 logits" in said


@pytest.mark.parametrize("returned", ["self.logits(x), x", "self.logits(x).softmax(1)"])
def test_distill__refuses_another_form_of_a_network_whose_output_is_not_its_logits(bench, capsys, returned):
    """Networks that return a tuple or probabilities: within another network, they are what their code returns."""
    code = f"{RETURNS.partition('def forward')[0]}def forward(self, x):\n        return {returned}\n"
    model, flags = bench.net(code), ("--normalize", "0.5/0.5", "--precision", "fp32")
    data = ("--pool", bench.folder / "data.npz", "--image-size", 8, "--filter", "none")
    assert bench.dfkd("select", "--teacher", model, *data, *flags, "--out", bench.folder / "selection") == 0
    for option, said in (
        ("--specialists", "whose own code returns logits"),
        ("--prune", "cannot be built with fewer channels"),
    ):
        form = (option, 2 if option == "--specialists" else 0.5, "--out", bench.folder / "run")
        student = ("--student", model, "--samples", bench.folder / "selection")
        assert bench.dfkd("distill", "--teacher", model, *student, *flags, *form) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]


VIEW = """
    def features(self, x):
        x = self.body(x)
        return x.view(x.size(0), -1)
"""


def test_tapped__falls_back_to_contiguous_memory(bench):
    """Networks that flatten with `view`, which channels-last memory refuses."""
    assert bench.accuracy(bench.net(VIEW)) == 1.0


STANDARDIZED = """
    def forward(self, x):
        x = x / x.view(x.size(0), -1).std(1)[:, None, None, None]
        return self.fc(self.features(x))
"""


def test_tapped__falls_back_before_the_average_of_the_weights_begins(bench):
    """Students that refuse channels-last memory at their input: `--ema` averages the weights that then learn."""
    teacher, flags = bench.net(STANDARDIZED), ("--normalize", "0.5/0.5", "--precision", "fp32")
    selection = bench.folder / "selection"
    data = ("--pool", bench.folder / "data.npz", "--image-size", 8, "--filter", "none")
    assert bench.dfkd("select", "--teacher", teacher, *data, *flags, "--out", selection) == 0
    short = ("--steps", 3, "--batch-size", 8, "--init", "none", "--loss", "kd", "--ema", 0.5, "--out")
    run = bench.folder / "run"
    student = ("--student", "foreign.Net", "--samples", selection)
    assert bench.dfkd("distill", "--teacher", teacher, *student, *flags, *short, run) == 0
    last = torch.load(run / "checkpoint" / "state.pt", weights_only=True)["student"]
    written = load_file(run / "student.safetensors")
    assert not any(torch.equal(written[name], value) for name, value in last.items())


def test_tapped__tells_what_a_network_raises_in_bfloat16(bench, capsys):
    """Networks whose own code fails on a batch, here in bfloat16 alone."""
    code = """
    def forward(self, x):
        if torch.is_autocast_enabled('cpu'):
            raise IndexError('not in bfloat16')
        return self.fc(self.features(x))
"""
    flags = ("--data", bench.folder / "data.npz", "--image-size", 8, "--precision", "bf16")
    assert bench.dfkd("evaluate", "--model", bench.net(code), *flags) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "the model Net fails in evaluation mode" in line and "IndexError: not in bfloat16 (foreign.py, line" in line


@pytest.mark.parametrize("ending", ["sys.exit(0)", "argparse.ArgumentParser().parse_args(['--unknown'])"])
def test_find__tells_of_a_module_that_ends_the_program(bench, capsys, ending):
    """Modules that are scripts: they exit, or parse arguments, when they are imported."""
    model = bench.net("")
    sys.modules.pop("foreign")
    (bench.folder / "foreign.py").write_text(f"import argparse, sys\n{ending}\n")
    assert bench.dfkd("evaluate", "--model", model, "--data", bench.folder / "data.npz") == 2
    assert "module 'foreign' ends the program when it is imported" in capsys.readouterr().err.splitlines()[-1]


def test_tapped__tells_what_a_student_raises_in_training():
    """Students that fail in training mode alone: in their own code, or as BatchNorm has one value a channel."""

    class Fails(nn.Module):
        def forward(self, x):
            if self.training:
                raise KeyError("aux")
            return x.mean((2, 3))

    for net, said in ((Fails(), r"KeyError: 'aux' \(test_networks.py"), (nn.BatchNorm2d(3), "larger --batch-size")):
        with pytest.raises(RequestError, match=f"fails in training mode on .*{said}"):
            Tapped(net.train(), {})(torch.rand(1, 3, 1, 1))


GATE = """
    def forward(self, x):
        return self.fc(self.features(2 * x if x.mean() > 0 else x))
"""


def test_export__tells_what_cannot_be_traced(bench, capsys):
    """Networks whose forward branches on values or loops over the batch."""
    flags = ("--image-size", 8, "--out", bench.folder / "net.pt2")
    assert bench.dfkd("export", "--model", bench.net(GATE), *flags) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 3 and "'foreign.Net@w.pt' cannot be written as a program" in lines[-1]
    assert "--format safetensors works" in lines[-1]


@pytest.mark.parametrize("fault", ["x = self.featurs(x)", "raise RuntimeError('Found no NVIDIA driver')", "x = size"])
def test_load_model__speaks_of_the_size_only_where_it_is_the_trouble(bench, capsys, fault):
    """Networks whose forward fails whatever the size: a typo in the code, a device that is not there."""
    model = bench.net("")
    code = PLAIN.replace("def forward(self, x):", f"def forward(self, x):\n        {fault}")
    (bench.folder / "foreign.py").write_text(code)
    sys.modules.pop("foreign")
    assert bench.dfkd("evaluate", "--model", model, "--data", bench.folder / "data.npz", "--image-size", 8) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--image-size" not in line and "Error: " in line and "(foreign.py, line" in line


def test_load_model__hints_at_the_size_of_a_network_that_takes_another(bench, capsys):
    """Networks that take images of one size alone, asked for another one."""
    model = bench.net("")
    assert bench.dfkd("evaluate", "--model", model, "--data", bench.folder / "data.npz", "--image-size", 20) == 2
    assert "(--image-size sets the size)" in capsys.readouterr().err.splitlines()[-1]


GRAY = """
    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Identity(), nn.Linear(64, 5)
"""
HEAD_FIRST = """
    def __init__(self):
        super().__init__()
        self.fc, self.last, self.body = nn.Linear(16, 5), nn.Conv2d(8, 16, 1), nn.Conv2d(3, 8, 3)

    def features(self, x):
        return self.last(self.body(x)).mean((2, 3))
"""


@pytest.mark.parametrize(("code", "channels"), [(GRAY, 1), (HEAD_FIRST, 3)])
def test_load_model__finds_the_channels_by_trying(bench, code, channels):
    """Networks without a convolution, or whose first one in the code is not the first that runs."""
    assert bench.accuracy(bench.net(code, channels=channels)) == 1.0
