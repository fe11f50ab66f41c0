"""Deep mutual learning against a plain formula."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dfkd.distill.losses import DML
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError


def kl(p, q):
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.fixture
def with_peers(rng):
    """A loss that is given the logits of some other students beside the teacher's, and these logits."""

    def made(loss, count):
        peers = [rng.normal(size=(6, 5)) * 2 for _ in range(count)]
        tensors = tuple(map(torch.tensor, peers))
        return (lambda ours, theirs: loss(ours, replace(theirs, peers=tensors))), peers

    return made


@pytest.mark.parametrize(("temperature", "hard", "count"), [(1.0, 1.0, 1), (3.0, 0.0, 2), (2.0, 0.5, 3)])
def test_value_and_gradient(logits, with_peers, check_formula, softmax, temperature, hard, count):
    student, teacher = logits
    loss, peers = with_peers(DML(temperature, hard), count)

    def formula(arrays):
        q, total = softmax(arrays["logits"] / temperature), 0.0
        for peer in peers:
            p = softmax(peer / temperature)
            total += temperature**2 * np.mean([kl(p[i], q[i]) for i in range(6)]) / count
        label = -np.mean([np.log(softmax(arrays["logits"])[i, teacher[i].argmax()]) for i in range(6)])
        return total + hard * label

    check_formula(loss, {"logits": student}, {"logits": teacher}, formula)


def test_a_student_like_the_other_costs_nothing_whatever_the_teacher_says(logits, outputs):
    student, teacher = logits
    theirs = replace(outputs(teacher), peers=(torch.tensor(student),))
    assert DML(hard=0.0)(outputs(student), theirs).item() == pytest.approx(0, abs=1e-12)


def test_without_another_student_it_is_refused(logits, outputs):
    ours, theirs = map(outputs, logits)
    with pytest.raises(RequestError, match="no other student"):
        DML()(ours, theirs)
    with pytest.raises(RequestError, match="temperature=0 is not above 0"):
        DML(temperature=0.0)
    with pytest.raises(RequestError, match="hard=-1 is not at least 0"):
        DML(hard=-1.0)


def test_is_finite_at_the_extremes(extreme, check_finite):
    ours, theirs = extreme
    check_finite(DML(), ours, replace(theirs, peers=(theirs.logits, theirs.logits.flip(0))))


def test_bfloat16_counts_in_float32(logits):
    student, teacher = (torch.tensor(x, dtype=torch.bfloat16) for x in logits)
    value = DML()(Outputs(student), Outputs(teacher.float(), peers=(teacher,)))
    assert value.dtype == torch.float32
    exact = DML()(Outputs(student.float()), Outputs(teacher.float(), peers=(teacher.float(),)))
    assert value.item() == pytest.approx(exact.item())
