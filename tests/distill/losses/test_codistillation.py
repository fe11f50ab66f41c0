"""Codistillation against a plain formula, and its burn-in."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dfkd.distill.losses import Codistillation
from dfkd.distill.objective import build_objective
from dfkd.system.errors import RequestError


@pytest.mark.parametrize("count", [1, 3])
def test_value_and_gradient(logits, rng, check_formula, softmax, count):
    student, teacher = logits
    peers = [rng.normal(size=(6, 5)) * 2 for _ in range(count)]
    loss = Codistillation(burn_in=0)

    def formula(arrays):
        q = softmax(arrays["logits"])
        p = sum(softmax(peer) for peer in peers) / count
        return np.mean([sum(p[i] * np.log(p[i] / q[i])) for i in range(6)])

    def called(ours, theirs):
        return loss(ours, replace(theirs, peers=tuple(map(torch.tensor, peers))))

    check_formula(called, {"logits": student}, {"logits": teacher}, formula)


def test_it_says_nothing_while_it_burns_in_and_counts_the_steps_of_the_training_alone(logits, outputs):
    loss = Codistillation(burn_in=2)
    assert loss.preparation == 2, "a run has to be longer than that"
    ours, theirs = outputs(logits[0], grad=True), replace(outputs(logits[1]), peers=(torch.tensor(logits[1]),))
    with torch.no_grad():
        assert loss(ours, theirs) == 0, "a trial before the training"
    assert [float(loss(ours, theirs).detach()) for _ in range(2)] == [0, 0]
    assert loss(ours, theirs) > 0
    fresh = Codistillation(burn_in=2)
    fresh.load_state_dict(loss.state_dict())
    assert fresh(ours, theirs) == loss(ours, theirs)


def test_beside_another_loss_it_adds_nothing_in_the_burn_in(logits, outputs):
    ours, theirs = outputs(logits[0], grad=True), replace(outputs(logits[1]), peers=(torch.tensor(logits[1]),))
    total, values = build_objective(["kd", "codistillation:burn_in=1"])(ours, theirs)
    assert total.item() == values["kd"].item() and values["codistillation"] == 0


def test_without_another_student_it_is_refused(logits, outputs):
    with pytest.raises(RequestError, match="no other student"):
        Codistillation()(*map(outputs, logits))
    with pytest.raises(RequestError, match="burn_in=-1 is not at least 0"):
        Codistillation(burn_in=-1)
