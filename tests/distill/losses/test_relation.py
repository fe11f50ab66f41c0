from dataclasses import replace

import numpy as np
import pytest
import torch

from dfkd.distill.losses import Relation
from dfkd.models.features.outputs import Outputs

LOSSES = [Relation(), Relation("logits")]


@pytest.mark.parametrize("of", ["probabilities", "logits"])
def test_relation(logits, check_formula, softmax, of):
    student, teacher = logits

    def psi(x):
        t = softmax(x) if of == "probabilities" else x
        d = np.array([np.linalg.norm(t[i] - t[j]) for i in range(6) for j in range(i + 1, 6)])
        return d / d.mean()

    def formula(arrays):
        gap = np.abs(psi(arrays["logits"]) - psi(teacher))
        return np.where(gap < 1, gap**2 / 2, gap - 0.5).mean()

    check_formula(Relation(of), {"logits": student}, {"logits": teacher}, formula)


def test_it_does_not_change_with_the_scale_of_logits(logits):
    student, teacher = (torch.tensor(x) for x in logits)
    once = Relation("logits")(Outputs(student), Outputs(teacher))
    assert Relation("logits")(Outputs(7 * student), Outputs(0.1 * teacher)).item() == pytest.approx(once.item())


@pytest.mark.parametrize("loss", LOSSES)
def test_it_is_zero_at_equality(loss, logits, check_zero_at_equality):
    check_zero_at_equality(loss, logits[0])


def test_logits_do_not_depend_on_the_batchs_order(logits, check_permutation):
    check_permutation(Relation("logits"), *logits)


@pytest.mark.parametrize("loss", LOSSES)
def test_it_is_finite_with_its_gradient(loss, extreme, check_finite):
    student, teacher = extreme
    for mask in (None, teacher.logits == teacher.logits.max(dim=1, keepdim=True).values):
        check_finite(loss, student, replace(teacher, kept=mask))
