"""One process and two give the same loss and gradients: seven images, three with rank 0 and four with rank 1."""

import pytest
import torch

from dfkd.distill import losses
from dfkd.distill.loss import Loss, PlainLoss

NAMES = sorted(name.lower() for name in losses.__all__)


def check_same(one, two, name):
    """The losses, gradients and buffers of two steps; gradients that are 0 but for rounding count by the largest."""
    alone, (first, second) = one["loss", name], (rank["loss", name] for rank in two)
    assert alone.keys() == first.keys() == second.keys()
    assert {"loss 0", "loss 1"} <= alone.keys()
    for step in ("0", "1"):
        together = (first[f"loss {step}"] + second[f"loss {step}"]) / 2
        assert together.item() == pytest.approx(alone[f"loss {step}"].item(), rel=1e-5)
    for what, expected in alone.items():
        if not what.startswith("loss"):
            assert torch.equal(first[what], second[what]), "ranks go on from the same gradients"
            kind = what.split(".")[0]
            largest = max(float(value.abs().max()) for other, value in alone.items() if other.startswith(kind))
            assert torch.allclose(first[what], expected, rtol=1e-3, atol=2e-5 * largest, equal_nan=True), what
    gradients = [value for what, value in alone.items() if what.startswith("gradient 0 of student")]
    return max((float(value.abs().max()) for value in gradients), default=0.0)


@pytest.mark.parametrize("name", NAMES)
def test_loss__is_the_same_in_two_processes_as_in_one(computed, name):
    assert check_same(computed[0], computed[1:], name) > 1e-7


def test_losses__with_other_options_are_the_same_in_two_processes(computed):
    names = [name for kind, name in computed[0] if kind == "loss" and name not in NAMES]
    assert len(names) > 15
    for name in names:
        check_same(computed[0], computed[1:], name)


def test_students__that_learn_from_each_other_become_the_same_in_two_processes(computed):
    alone, *ranks = (one["cohort", "kd dml"] for one in computed)
    for name, expected in alone.items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        assert torch.allclose(ranks[0][name], expected, rtol=1e-4, atol=1e-6), name
    assert not torch.equal(alone["0.linear.weight"], alone["1.linear.weight"])


def test_ranges__of_a_student_in_int8_are_those_of_the_whole_batch(computed):
    alone, *ranks = (one["rounding", "int8"] for one in computed)
    for name, expected in alone.items():
        assert torch.equal(ranks[0][name], ranks[1][name])  # a checkpoint has those of rank 0 for all
        assert torch.allclose(ranks[0][name], expected, rtol=1e-4, atol=1e-6), name
    assert any(name.endswith("high") and value > 0 for name, value in alone.items())


def test_copies__of_students_have_the_statistics_of_rank_0_which_a_checkpoint_holds(computed):
    first, second = (one["copies", "stale"] for one in computed[1:])
    assert any("running_mean" in name for name in first)
    for name, expected in first.items():
        assert torch.equal(second[name], expected), name


class PerImage(Loss):
    per_image = True

    def forward(self, student, teacher):
        return student.logits.mean()


class Overridden(PerImage):
    def forward(self, student, teacher):
        return student.logits.var()


class Renamed(PerImage):
    weight = 2.0


def plain(student, teacher):
    return student.logits.mean()


def test_divisible__holds_for_the_forward_that_was_declared_with_it():
    assert PerImage().divisible and Renamed().divisible
    assert not Overridden().divisible, "it may look at the whole batch"
    assert not Loss().divisible and not PlainLoss(plain).divisible
    plain.per_image = True
    assert PlainLoss(plain).divisible
