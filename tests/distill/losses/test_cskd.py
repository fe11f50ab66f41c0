"""Class-wise self-distillation against a plain formula over pairs."""

import numpy as np
import pytest
import torch

from dfkd.distill.losses import CSKD
from dfkd.system.errors import RequestError

LABELS = [2, 0, 2, 1, 2, 0]
"""A class of three images, one of two, and one of one image, which has no partner."""


@pytest.fixture
def sides(logits):
    student, teacher = logits
    return student, teacher + 50 * np.eye(5)[LABELS]


@pytest.mark.parametrize(("temperature", "hard"), [(4.0, 1.0), (1.0, 0.0)])
def test_value_and_gradient(sides, check_formula, softmax, temperature, hard):
    student, teacher = sides
    fixed = softmax(student / temperature)

    def formula(arrays):
        q, images = softmax(arrays["logits"] / temperature), []
        for i in range(6):
            partners = [j for j in range(6) if j != i and LABELS[j] == LABELS[i]]
            if partners:
                images.append(np.mean([sum(fixed[j] * np.log(fixed[j] / q[i])) for j in partners]))
        label = -np.mean([np.log(softmax(arrays["logits"])[i, LABELS[i]]) for i in range(6)])
        return temperature**2 * np.mean(images) + hard * label

    check_formula(CSKD(temperature, hard), {"logits": student}, {"logits": teacher}, formula)


def test_images_of_a_class_that_are_answered_alike_cost_nothing(sides, outputs, rng):
    student = rng.normal(size=(5, 5))[LABELS]
    assert CSKD(hard=0.0)(outputs(student), outputs(sides[1])).item() == pytest.approx(0, abs=1e-12)


def test_a_batch_of_different_classes_is_taught_by_the_label_alone(logits, outputs):
    ours, theirs = outputs(logits[0][:5], grad=True), outputs(np.eye(5))
    value = CSKD()(ours, theirs)
    assert value.item() == torch.nn.functional.cross_entropy(ours.logits, torch.arange(5)).item()
    value.backward()
    assert ours.logits.grad.isfinite().all()


def test_the_batch_may_be_permuted(sides, check_permutation):
    check_permutation(CSKD(), *sides)


def test_is_finite_at_the_extremes(extreme, check_finite):
    check_finite(CSKD(1.0), *extreme)


def test_bfloat16_is_close(sides, check_close_in_bf16):
    check_close_in_bf16(CSKD(), *sides)


def test_refuses_what_is_out_of_range():
    with pytest.raises(RequestError, match="temperature=0 is not above 0"):
        CSKD(temperature=0.0)
    with pytest.raises(RequestError, match="hard=-1 is not at least 0"):
        CSKD(hard=-1.0)
