"""Weights of teachers without labels: a simulation with known errors, and the likelihood's slope where EM stops."""

import math

import pytest
import torch
from torch import nn

from dfkd.models.ensemble import Ensemble, Part
from dfkd.models.learned_mixing import _PRIOR, class_weights, confusions

CLASSES, IMAGES = 4, 3000
RIGHT = torch.tensor([[0.95, 0.95, 0.6, 0.6], [0.6, 0.7, 0.95, 0.95], *[[0.85, 0.85, 0.8, 0.8]] * 2])
"""How often each of four teachers is right, by the class of the image."""


def simulated(images=IMAGES, seed=0):
    """Hidden classes, and what the teachers say: the other class of a pair where they are wrong, seldom any."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (images,), generator=random)
    said = []
    for right in RIGHT:
        any_class = torch.randint(0, CLASSES, (images,), generator=random)
        wrong = torch.where(torch.rand(images, generator=random) < 0.1, any_class, labels ^ 1)
        answer = torch.where(torch.rand(images, generator=random) < right[labels], labels, wrong)
        said.append(torch.nn.functional.one_hot(answer, CLASSES))
    return labels, said


def test_confusions__find_how_often_each_teacher_is_right():
    labels, said = simulated()
    frequent, tables = confusions(said)
    assert torch.allclose(frequent, torch.full_like(frequent, 1 / CLASSES), atol=0.03)
    for table, answers in zip(tables, said, strict=True):
        counted = torch.stack([answers[labels == k].double().mean(dim=0) for k in range(CLASSES)])
        assert torch.allclose(table, counted, atol=0.05)


def test_confusions__are_where_the_likelihood_is_flat():
    """Its slope by the logits of all tables, with the prior counts, is 0; the values are those of no EM."""
    said = [one[:200] for one in simulated()[1]]
    frequent, tables = confusions(said)
    u = [table.log().requires_grad_() for table in tables]
    logs = [x.log_softmax(dim=1) for x in u]
    joint = frequent.log() + sum(one.double() @ log.T for one, log in zip(said, logs, strict=True))
    likelihood = joint.logsumexp(dim=1).sum() + _PRIOR * sum(log.sum() for log in logs)
    slopes = torch.autograd.grad(likelihood, u)
    assert max(slope.abs().max().item() for slope in slopes) < 1e-2 * len(said[0]) / CLASSES


def test_weights__are_log_odds_and_raise_the_accuracy_of_the_vote():
    labels, said = simulated()
    weights = class_weights(said)
    frequent, tables = confusions(said)
    joint = frequent[2] * tables[0][2, 2], (frequent * tables[0][:, 2]).sum()
    a = float(joint[0] / joint[1])
    assert weights[0, 2].item() == pytest.approx(math.log((CLASSES - 1) * a / (1 - a)), rel=1e-9)
    assert weights[0, 0] > weights[0, 2] and weights[1, 3] > weights[1, 0]
    plain = torch.stack(said).float().mean(dim=0).argmax(dim=1)
    weighed = (torch.stack(said) * weights[:, None].float()).sum(dim=0).argmax(dim=1)
    accuracies = [(answer == labels).float().mean().item() for answer in (plain, weighed)]
    assert accuracies[1] > accuracies[0] + 0.01, accuracies


def test_each__is_what_a_member_says_over_all_classes():
    class Says(nn.Module):
        def forward(self, images):
            return torch.tensor([[1.0, 2.0]]).expand(len(images), -1)

    ensemble = Ensemble([Part(Says(), [2, 0]), Part(Says(), [0, 1])], 3, "learned")
    p = [logits.softmax(dim=1) for logits in ensemble.each(torch.zeros(1, 1, 2, 2))]
    low, high = torch.tensor([1.0, 2.0]).softmax(dim=0).tolist()
    assert p[0][0].tolist() == pytest.approx([high, 0, low])
    assert p[1][0].tolist() == pytest.approx([low, high, 0])
