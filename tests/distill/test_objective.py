import pytest
import torch

from dfkd.distill.losses import KD, Relation
from dfkd.distill.objective import build_objective
from dfkd.distill.setting import Setting
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError

OWN = """
import torch
class Watching(torch.nn.Module):
    taps = ("stage", "last")
    weight = 7.0
    def bind(self, setting):
        self.setting, self.calls = setting, ["bind"]
    def setup(self, student, teacher):
        self.calls.append("setup")
    def finish(self):
        self.calls.append("finish")
    def forward(self, student, teacher):
        return student.logits.sum()
def gap(student, teacher, power: int = 1):
    return (student.logits - teacher.logits).abs().pow(power).mean()
class Bias(torch.nn.Module):
    def __init__(self, start: float = 0.0):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(start))
    def forward(self, student, teacher):
        return self.value ** 2
"""


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return Outputs(torch.randn(5, 4, requires_grad=True)), Outputs(torch.randn(5, 4))


def test_the_weighted_sum(pair):
    objective = build_objective(["kd:2,temperature=3", "relation", "kd:0.5"])
    total, values = objective(*pair)
    assert list(values) == ["kd", "relation", "kd#2"]
    expected = 2 * KD(3.0)(*pair) + Relation()(*pair) + 0.5 * KD()(*pair)
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert values["kd#2"].item() == pytest.approx(KD()(*pair).item(), rel=1e-6)
    assert not values["kd"].requires_grad


def test_only_what_is_read_is_tapped():
    assert build_objective(["kd", "relation"]).taps == frozenset()
    assert build_objective(["kd", "explicit:0.5"]).taps == {"first", "last"}


def test_a_function_and_a_class_of_ones_own(pair, tmp_path, monkeypatch):
    (tmp_path / "own_losses.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    objective = build_objective(["own_losses.gap:2,power=2", "own_losses.Bias:start=3"])
    total, _ = objective(*pair)
    gap = (pair[0].logits - pair[1].logits).pow(2).mean()
    assert total.item() == pytest.approx(2 * gap.item() + 9)
    assert [p.item() for p in objective.parameters()] == [3.0]
    assert list(objective.state_dict()) == ["losses.0.value"]


def test_a_loss_has_its_own_weight_taps_and_calls(pair, tmp_path, monkeypatch):
    (tmp_path / "watching_losses.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    objective = build_objective(["kd", "watching_losses.Watching"])
    assert objective.taps == {"stage", "last"} and objective.binds and objective.reads_kept
    assert objective.spelled[1].startswith("watching_losses.Watching:7 (code")
    loss = objective.losses[1]
    objective.setup(*pair, Setting(print, print, None, None, images=9))
    total, values = objective(*pair)
    objective.finish()
    assert loss.calls == ["bind", "setup", "finish"] and loss.setting.images == 9
    assert total.item() == pytest.approx((values["kd"] + 7 * pair[0].logits.sum()).item())
    assert build_objective(["watching_losses.Watching:0.5"]).spelled[0].startswith("watching_losses.Watching:0.5 ")
    plain = build_objective(["relation"])
    assert not (plain.taps or plain.binds or plain.reads_kept)


DECLARING = """
import torch
from dfkd.distill.loss import Loss

class Whole(Loss):
    taps = ("last",)
    weight = 3.0
    reads_kept = True

    def __init__(self, quick: bool = False):
        super().__init__()
        self.preparation = 0 if quick else 5
        self.register_buffer("seen", torch.zeros(()))

    def bind(self, setting):
        self.setting = setting

    def forward(self, student, teacher):
        self.seen += len(student.logits)
        return student.logits.sum()

    def finish(self):
        self.seen.zero_()

class Faulty(Loss):
    def setup(self, student, teacher):
        raise KeyError("pre9")

    def forward(self, student, teacher):
        return student.logits.sum()

class Few(Loss):
    def forward(self, student, teacher):
        return 1 / 0

class Strange(torch.nn.Module):
    taps = (1, 2)

    def forward(self, student, teacher):
        return student.logits.sum()

def told(student, teacher):
    return student.logits.sum()

told.weight, told.taps, told.asks_teacher = 0.5, ["stage"], True
"""


@pytest.fixture
def declaring(tmp_path, monkeypatch):
    (tmp_path / "declaring_losses.py").write_text(DECLARING)
    monkeypatch.chdir(tmp_path)


def test_loss__declares_by_attributes(pair, declaring):
    whole = build_objective(["declaring_losses.Whole"])
    assert whole.taps == {"last"} and whole.reads_kept and whole.binds
    assert whole.preparation == {"declaring_losses.Whole": 5} and whole.beyond_logits == ["declaring_losses.Whole"]
    assert whole.spelled[0].startswith("declaring_losses.Whole:3 (code ")
    assert not build_objective(["declaring_losses.Whole:quick=true"]).preparation
    whole.setup(*pair, Setting(print, print, None, None, images=9))
    whole(*pair)
    assert whole.state_dict()["losses.0.seen"] == 5
    whole.finish()
    assert whole.state_dict()["losses.0.seen"] == 0


def test_plain_loss__may_declare_the_same(pair, declaring):
    objective = build_objective(["kd", "declaring_losses.told"])
    assert objective.taps == {"stage"} and objective.beyond_logits == ["declaring_losses.told"] and not objective.binds
    total, values = objective(*pair)
    assert total.item() == pytest.approx((values["kd"] + 0.5 * pair[0].logits.sum()).item())
    with pytest.raises(RequestError, match=r"taps=\(1, 2\) are not names of features"):
        build_objective(["declaring_losses.Strange"])


def test_objective__says_which_loss_failed_and_where(pair, declaring):
    faulty, few = (build_objective([f"declaring_losses.{name}"]) for name in ("Faulty", "Few"))
    with pytest.raises(RequestError, match=r"^loss declaring_losses.Faulty fails: KeyError: 'pre9' \(decl"):
        faulty.setup(*pair, Setting(print, print, None, None, None))
    with pytest.raises(RequestError, match=r"^loss declaring_losses.Few cannot take .*ZeroDivisionError.*line 34\)"):
        few.check(*pair)


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        ([], "there is no loss"),
        (["kdd"], "did you mean"),
        (["kd:1,2"], "has 2 weights"),
        (["kd:temp=4"], "no parameter 'temp'"),
        (["relation:of=features"], "not one of probabilities, logits"),
    ],
)
def test_what_is_wrong_is_named(specs, said):
    with pytest.raises(RequestError, match=said):
        build_objective(specs)
