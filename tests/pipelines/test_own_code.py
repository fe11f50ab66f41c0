"""Students and losses of one's own, through the real commands."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10, in_channels=1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.features = nn.Sequential(self.conv, nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))

class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixed = nn.Linear(10, 10)

    def forward(self, student, teacher):
        return (self.mixed(student.logits) - teacher.logits).square().mean()
"""
STEPS = ("--steps", 2, "--batch-size", 16, "--log-every", 1)


@pytest.fixture(autouse=True)
def own_code(tmp_path, monkeypatch):
    (tmp_path / "own_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_code", raising=False)


def test_a_layer_under_two_names_is_written_under_both(lab, selection, tmp_path):
    run, exported = tmp_path / "run", tmp_path / "student.safetensors"
    assert lab.distill(selection, run, *STEPS, "--loss", "kd", "--student", "own_code.Net") == 0
    assert lab.dfkd("export", "--model", run, "--out", exported) == 0
    for file in (run / "student.safetensors", exported):
        weights = load_file(file)
        assert torch.equal(weights["conv.weight"], weights["features.0.weight"])
    assert lab.dfkd("evaluate", "--model", run, "--data", lab.heldout) == 0


def test_the_seed_decides_a_loss_with_parameters_too(lab, selection, tmp_path):
    losses = []
    for number in range(2):
        torch.manual_seed(100 + number)  # as two processes would begin
        assert lab.distill(selection, tmp_path / str(number), *STEPS, "--loss", "own_code.Loss") == 0
        rows = (tmp_path / str(number) / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(row)["loss"] for row in rows])
    assert losses[0] == losses[1]


def test_the_result_says_with_which_weights_the_student_began(lab, selection, tmp_path):
    own = ("--student", "own_code.Net")
    students = {"random": own, "teacher": (), "given": ("--student", tmp_path / "random")}
    for begins, flags in students.items():
        assert lab.distill(selection, tmp_path / begins, *STEPS, "--loss", "kd", *flags) == 0
        assert json.loads((tmp_path / begins / "result.json").read_text())["begins"] == begins


def test_weights_that_a_student_holds_fixed_stay_as_they_are(lab, selection, tmp_path):
    fixed = CODE.replace(
        "    def forward(self, x)",
        "        self.conv.weight.requires_grad_(False).fill_(1 / 9)\n\n    def forward(self, x)",
    )
    (tmp_path / "own_code.py").write_text(fixed)
    run = tmp_path / "run"
    assert lab.distill(selection, run, *STEPS, "--loss", "kd", "--student", "own_code.Net") == 0
    weights = load_file(run / "student.safetensors")
    assert (weights["conv.weight"] == 1 / 9).all() and (weights["conv.bias"] != 0).any()


def test_an_order_that_was_edited_is_another_run(lab, selection, tmp_path, capsys):
    code = "from dfkd.training.sampling import ShuffledOrder\n\n\n"
    code += "def mine(stored, batch, seed):\n    return ShuffledOrder(stored.images, {})\n"
    (tmp_path / "own_code.py").write_text(code.format("seed"))
    flags = (tmp_path / "run", *STEPS, "--loss", "kd", "--batches", "own_code.mine")
    assert lab.distill(selection, *flags) == 0
    (tmp_path / "own_code.py").write_text(code.format("seed + 1"))
    del sys.modules["own_code"]
    assert lab.distill(selection, *flags) == 2
    assert "options.batches (own_code.mine (code " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def mine(scores, rng):\n    return [1, 2]", "not a dfkd.select.methods.Ranking; return Ranking(rows)"),
        (
            "def mine(scores, rng):\n    1 / 0",
            "'own_code.mine' failed: ZeroDivisionError: division by zero (own_code.py, line 2)",
        ),
        ("def mine(scores, rng:\n", "imported: SyntaxError: '(' was never closed (own_code.py, line 1)"),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero (own_code.py, line 1)"),
    ],
)
def test_what_a_method_of_ones_own_does_wrong_is_told_with_its_place(lab, tmp_path, capsys, code, said):
    (tmp_path / "own_code.py").write_text(code)
    assert lab.select(tmp_path / "out", "--method", "own_code.mine") == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "raise RuntimeError('boom')",
            "cannot take the outputs of student and teacher: RuntimeError: boom (own_code.py, line 2)",
        ),
        ("return student.logits.mean(0)", "gives a tensor of shape [10], not one number"),
        ("return teacher.logits.mean()", "the losses (own_code.mine) give the student no gradient"),
    ],
)
def test_what_a_loss_of_ones_own_does_wrong_is_told(lab, selection, tmp_path, capsys, body, said):
    (tmp_path / "own_code.py").write_text(f"def mine(student, teacher):\n    {body}\n")
    assert lab.distill(selection, tmp_path / "run", *STEPS, "--loss", "own_code.mine") == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_gamma__is_the_methods_own_unless_the_flag_says_it(lab, tmp_path, capsys):
    """The default of a method of one's own is not replaced by that of ours."""
    code = "from dfkd.select.methods import Ranking\n\n\n"
    code += "def mine(scores, rng, *, gamma: float = 0.25):\n"
    code += "    return Ranking(scores.confidence.argsort()[: int(400 * gamma)])\n"
    (tmp_path / "own_code.py").write_text(code)
    for name, flags, text in (
        ("a", (), "own_code.mine:gamma=0.25"),
        ("b", ("--gamma", 0.5), "own_code.mine:gamma=0.5"),
    ):
        assert lab.select(tmp_path / name, "--method", "own_code.mine", *flags, "--count", 50) == 0
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        assert manifest["content"]["options"]["method"] == text
    assert "changes nothing" not in capsys.readouterr().err


def test_an_order_of_ones_own_that_is_none_is_told(lab, selection, tmp_path, capsys):
    (tmp_path / "own_code.py").write_text("def mine(stored, batch, seed):\n    return [1, 2]\n")
    assert lab.distill(selection, tmp_path / "run", *STEPS, "--loss", "kd", "--batches", "own_code.mine") == 2
    said = "order of batches own_code.mine gives a list, which has no rows(position, count)"
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_generators_metric_does_not_replace_the_loss(lab, tmp_path):
    code = "from dfkd.generators.dafl import DAFL\n\n\nclass Mine(DAFL):\n    def update(self, student):\n"
    code += "        return {**super().update(student), 'loss': self.network[0].weight.new_zeros(())}\n"
    (tmp_path / "own_code.py").write_text(code)
    shape = ("--normalize", "0.5/0.5", "--image-size", 16, "--source", "own_code.Mine:width=4", "--samples")
    assert lab.distill(None, tmp_path / "run", *STEPS, "--loss", "kd", *shape) == 0
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["loss"] > 0 and row["source.loss"] == 0 and row["one_hot"] > 0
