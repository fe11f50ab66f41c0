"""Teachers and pools at the ends of what numbers can be, through the real commands."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dfkd.formats.shards import Shards

SIDE = 16
NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes: int = 10, kind: str = "linear"):
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x):
        out = self.fc(self.norm(self.conv(x)).mean((2, 3)))
        bright = (x.mean((1, 2, 3)) > 0.2)[:, None]
        if self.kind == "nan":
            return torch.where(bright, torch.nan, out)
        if self.kind == "inf":
            return torch.where(bright, torch.inf, out)
        if self.kind == "all nan":
            return out * torch.nan
        if self.kind == "constant":
            return out * 0 + torch.arange(out.shape[1], device=x.device)
        if self.kind == "huge":
            return out * 0 + torch.arange(out.shape[1], device=x.device) * 1e5
        return out
"""


@pytest.fixture
def nets(tmp_path, monkeypatch, lab):
    """Teachers of one's own: `select` and `distill` with one of their kinds, on the lab's pool or another."""
    (tmp_path / "odd_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "odd_nets", raising=False)

    def run(command, kind, *more, classes=10):
        teacher = ("--teacher", f"odd_nets.Net:kind={kind!r},num_classes={classes}", "--precision", "fp32")
        shape = ("--normalize", "0.5/0.5", "--image-size", SIDE) if command == "select" else ()
        student = ("--student", "odd_nets.Net", "--batch-size", 8) if command == "distill" else ()
        return lab.dfkd(command, *teacher, *shape, *student, *more)

    return run


@pytest.fixture
def pool(tmp_path, rng):
    """A pool of so many images, half of them dark and half bright, or all of them equal."""

    def make(count, equal=False):
        pixels = rng.integers(0, 100, (count, SIDE, SIDE, 1), dtype=np.uint8)
        pixels[1::2] += 150
        np.savez(tmp_path / "p.npz", images=pixels[:1].repeat(count, 0) if equal else pixels)
        return tmp_path / "p.npz"

    return make


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_images_without_a_finite_answer_are_never_selected(nets, pool, tmp_path, kind):
    assert nets("select", kind, "--pool", pool(20), "--out", tmp_path / "s", "--gamma", 1, "--count", 10) == 0
    shards = Shards(tmp_path / "s")
    assert shards.manifest.reasons["non_finite"] == 10
    assert shards.column("source").tolist() == [f"p.npz#{i}" for i in range(0, 20, 2)]
    assert np.isfinite(shards.column("logits")).all()


def test_a_teacher_that_never_answers_is_refused(nets, pool, tmp_path, capsys):
    assert nets("select", "all nan", "--pool", pool(20), "--out", tmp_path / "s") == 2
    assert "no image of the pool can be used: none is readable with a finite score" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_weights_that_are_not_finite_are_named_and_not_the_learning_rate(lab, selection, tmp_path, capsys):
    weights = load_file(lab.folder / "teacher.safetensors")
    weights["linear.bias"][3] = float("nan")
    save_file(weights, tmp_path / "nan.safetensors")
    teacher = f"{lab.teacher.partition('@')[0]}@{tmp_path / 'nan.safetensors'}"
    flags = ("--teacher", teacher, "--student", "cifar_resnet:depth=8", "--samples", selection, "--steps", 2)
    assert lab.dfkd("distill", *flags, "--out", tmp_path / "run") == 2
    assert "nan.safetensors has weights that are not finite (linear.bias)" in capsys.readouterr().err


def test_a_teacher_that_stops_answering_stops_the_distillation(nets, pool, tmp_path, capsys):
    assert nets("select", "linear", "--pool", pool(20), "--out", tmp_path / "s", "--count", 12) == 0
    assert (
        nets("distill", "nan", "--samples", tmp_path / "s", "--out", tmp_path / "r", "--steps", 5, "--loss", "kd") == 2
    )
    assert "no longer finite at step 5 (term kd)" in capsys.readouterr().err
    assert not (tmp_path / "r" / "student.safetensors").exists()


@pytest.mark.parametrize("more", [(), ("--balance", "class"), ("--balance", "cluster"), ("--deduplicate", 0.99)])
def test_a_constant_teacher_and_equal_images_give_ties_and_no_error(nets, pool, tmp_path, more):
    for kind, equal in (("constant", False), ("linear", True)):
        out = tmp_path / kind
        count = () if "--deduplicate" in more else ("--count", 7)
        assert nets("select", kind, "--pool", pool(20, equal), "--out", out, *count, *more) == 0
        shards = Shards(out)
        assert shards.manifest.admitted == 20  # a tie with the threshold is admitted
        if "--deduplicate" in more and equal:
            assert shards.column("source").tolist() == ["p.npz#0"]
        elif count:
            assert len(shards) == 7
    assert nets("distill", "constant", "--samples", tmp_path / "constant", "--out", tmp_path / "r", "--steps", 2) == 0


def test_one_class_is_refused_and_one_predicted_class_is_none(nets, pool, tmp_path, capsys):
    assert nets("select", "linear", "--pool", pool(4), "--out", tmp_path / "s", classes=1) == 2
    assert "logits [batch, classes] of two classes or more" in capsys.readouterr().err
    assert nets("select", "constant", "--pool", pool(9), "--out", tmp_path / "s", "--balance", "class") == 0
    assert Shards(tmp_path / "s").manifest.per_class == (*[0] * 9, 4)


def test_ten_thousand_classes(nets, pool, tmp_path, capsys):
    assert nets("select", "linear", "--pool", pool(12), "--out", tmp_path / "s", "--count", 6, classes=10_000) == 0
    shards = Shards(tmp_path / "s")
    assert shards.column("logits").shape == (6, 10_000)
    out = ("--samples", tmp_path / "s", "--out", tmp_path / "r", "--steps", 2)
    assert nets("distill", "linear", *out, classes=10_000) == 0
    assert len(max(capsys.readouterr().err.splitlines(), key=len)) < 1000


def test_a_pool_of_one_image_and_batches_larger_than_it(nets, pool, tmp_path):
    assert nets("select", "linear", "--pool", pool(1), "--out", tmp_path / "s", "--batch-size", 4096) == 0
    assert Shards(tmp_path / "s").manifest.count == 1
    assert nets("distill", "linear", "--samples", tmp_path / "s", "--out", tmp_path / "r", "--steps", 3) == 0
    assert json.loads((tmp_path / "r" / "result.json").read_text())["images_seen"] == 24


@pytest.mark.parametrize(("gamma", "admitted"), [(1, 20), (1e-9, 1), (0.05, 1), (0.1, 2)])
def test_gamma_at_its_ends(nets, pool, tmp_path, gamma, admitted):
    assert nets("select", "linear", "--pool", pool(20), "--out", tmp_path / "s", "--gamma", gamma) == 0
    assert Shards(tmp_path / "s").manifest.admitted == admitted


def test_logits_beyond_float16_are_cut_and_keep_their_class(nets, pool, tmp_path):
    assert nets("select", "huge", "--pool", pool(8), "--out", tmp_path / "s", "--count", 4) == 0
    shards = Shards(tmp_path / "s")
    assert shards.column("logits").max() == 65504
    assert shards.column("prediction").tolist() == [9] * 4
    assert shards.column("kept_classes")[:, 9].all()
    out = ("--samples", tmp_path / "s", "--out", tmp_path / "r", "--steps", 2, "--lr", 1e-6)
    assert nets("distill", "huge", *out, "--loss", "kd") == 0  # the teacher answers anew, in float32


def test_evaluate_counts_answers_that_are_not_finite_as_wrong(nets, tmp_path, lab, rng, capsys):
    pixels = np.zeros((10, SIDE, SIDE, 1), np.uint8)
    pixels[5:] = 200
    np.savez(tmp_path / "t.npz", images=pixels, labels=np.full(10, 9))
    figures = tmp_path / "f.json"
    more = ("--normalize", "none", "--image-size", SIDE, "--data", tmp_path / "t.npz", "--json", figures)
    constant = ("--teacher", "odd_nets.Net:kind=constant")
    torch.manual_seed(0)
    assert lab.dfkd("evaluate", "--model", "odd_nets.Net:kind=nan", *more, *constant) == 0
    assert "gives no finite answer for 5 images; they count as wrong" in capsys.readouterr().err
    measured = json.loads(figures.read_text())
    assert measured["top1"] <= 0.5 and measured["top5"] <= 0.5 and measured["agreement"] <= 0.5
    assert measured["teacher_top1"] == 1


LOSS = """
import torch
calls = [0]
class Cliff(torch.autograd.Function):
    @staticmethod
    def forward(context, logits):
        return logits.mean()
    @staticmethod
    def backward(context, gradient):
        calls[0] += 1
        return torch.full((8, 10), float("nan") if calls[0] == AT else 0.001, device=gradient.device)
def cliff(student, teacher):
    return Cliff.apply(student.logits) if student.logits.requires_grad else student.logits.mean()
"""


@pytest.mark.parametrize(("at", "kept"), [(20, 10), (10, None), (24, 20)])
def test_the_last_good_checkpoint_is_from_before_the_weights_blew_up(
    lab, selection, tmp_path, monkeypatch, capsys, at, kept
):
    """The loss of that step is still finite: only its gradient is not, and the step is one that saves."""
    module = f"cliff_{at}"
    (tmp_path / f"{module}.py").write_text(LOSS.replace("AT", str(at)))
    monkeypatch.syspath_prepend(tmp_path)
    flags = ("--steps", 24, "--batch-size", 8, "--checkpoint-every", 10, "--log-every", 4, "--loss", f"{module}.cliff")
    assert lab.distill(selection, tmp_path / "r", *flags) == 2
    said = capsys.readouterr().err
    assert f"the weights are no longer finite at step {at} (" in said
    assert not (tmp_path / "r" / "student.safetensors").exists()
    checkpoint = tmp_path / "r" / "checkpoint"
    assert checkpoint.exists() == (kept is not None)
    if kept:
        assert json.loads((checkpoint / "progress.json").read_text())["step"] == kept
        state = torch.load(checkpoint / "state.pt", weights_only=True)
        assert all(value.isfinite().all() for value in state["student"].values())
