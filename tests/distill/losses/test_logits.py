import numpy as np
import pytest
import torch

from dfkd.distill.losses import KD, Logits
from dfkd.distill.objective import build_objective
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError

LOSSES = [Logits(norm, centered) for norm in ("l1", "l2") for centered in (False, True)]


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_logits(logits, check_formula, norm, centered):
    student, teacher = logits

    def formula(arrays):
        total = 0.0
        for s, t in zip(arrays["logits"], teacher, strict=True):
            shift = sum(s) / 5 - sum(t) / 5 if centered else 0.0
            total += sum(abs(a - b - shift) ** (1 if norm == "l1" else 2) for a, b in zip(s, t, strict=True)) / 5
        return total / 6

    check_formula(Logits(norm, centered), {"logits": student}, {"logits": teacher}, formula)


def test_half_of_the_centered_square_is_the_limit_of_kd(logits):
    ours, theirs = (Outputs(torch.tensor(x)) for x in logits)
    limit = Logits(centered=True)(ours, theirs).item() / 2
    assert KD(1e4)(ours, theirs).item() == pytest.approx(limit, rel=1e-3)


def test_only_centered_a_constant_says_nothing(logits):
    ours, theirs = (torch.tensor(x) for x in logits)
    shift = torch.arange(6.0, dtype=torch.float64)[:, None]
    for loss in LOSSES:
        once, moved = (loss(Outputs(x), Outputs(theirs)).item() for x in (ours, ours + shift))
        assert (moved == pytest.approx(once)) == loss.centered


@pytest.mark.parametrize("loss", LOSSES)
class TestEveryForm:
    def test_it_is_zero_at_equality(self, loss, logits, check_zero_at_equality):
        check_zero_at_equality(loss, logits[0], most=0)

    def test_it_does_not_depend_on_the_batchs_order(self, loss, logits, check_permutation):
        check_permutation(loss, *logits)

    def test_it_is_finite_with_its_gradient(self, loss, extreme, check_finite):
        check_finite(loss, *extreme)

    def test_bf16_is_close_to_float32(self, loss, logits, check_close_in_bf16):
        check_close_in_bf16(loss, *logits)


@pytest.mark.parametrize(
    ("spec", "said"), [("logits:norm=l3", "not one of l1, l2"), ("logits:centered=2", "not true or false")]
)
def test_it_refuses(spec, said):
    with pytest.raises(RequestError, match=said):
        build_objective([spec])


def test_the_default_is_the_papers():
    loss = Logits()
    assert (loss.norm, loss.centered, loss.weight) == ("l2", False, 1.0)
    assert np.isclose(loss(Outputs(torch.ones(2, 4)), Outputs(torch.zeros(2, 4))).item(), 1.0)
