"""The loss of specialists against the formula by hand, with its gradient, and how classes are grouped."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dfkd.distill.specialists import groups_of
from dfkd.distill.specialists_loss import Specialists
from dfkd.models.architectures.specialists import Specialists as Voting
from dfkd.models.features.outputs import Outputs
from dfkd.models.features.taps import Tap, Tapped
from dfkd.system.errors import RequestError
from dfkd.system.torch_optim import AdamW

BATCH, CLASSES, T = 5, 4, 2.0
SPECIAL = np.array([[True, False, True, False], [False, True, False, True]])


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def by_hand(z, t, special):
    """The value, and its gradient to z, image by image."""
    value, slope, label = 0.0, np.zeros_like(z), t.argmax(axis=1)
    for m in range(z.shape[1]):
        own = special[m][label]
        for i in range(len(z)):
            share = 0.5 / (own.sum() if own[i] else (~own).sum())
            if own[i]:
                p = softmax(z[i, m])
                value -= share * np.log(p[label[i]])
                slope[i, m] += share * (p - np.eye(CLASSES)[label[i]])
            else:
                p, q = softmax(t[i] / T), softmax(z[i, m] / T)
                value += share * T**2 * (p * np.log(p / q)).sum()
                slope[i, m] += share * T * (q - p)
    return value, slope


def loss_of(z, t, special=SPECIAL):
    table = torch.from_numpy(special).expand(len(z), -1, -1)
    ours = Outputs(torch.zeros(len(z), CLASSES), {"experts": z, "special": table})
    return Specialists(temperature=T)(ours, Outputs(t))


@pytest.mark.parametrize("seed", range(3))
def test_loss__is_half_of_hard_labels_and_half_of_soft_ones(seed):
    rng = np.random.default_rng(seed)
    z, t = rng.normal(size=(BATCH, 2, CLASSES)), 2 * rng.normal(size=(BATCH, CLASSES))
    value, slope = by_hand(z, t, SPECIAL)
    ours = torch.from_numpy(z).requires_grad_()
    loss = loss_of(ours, torch.from_numpy(t))
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(ours.grad.numpy(), slope, atol=1e-7)


def test_loss__of_a_batch_without_special_images_is_that_of_the_rest():
    t = torch.zeros(3, CLASSES)
    t[:, 1] = 5.0
    z = torch.zeros(3, 2, CLASSES, requires_grad=True)
    loss = loss_of(z, t)
    loss.backward()
    assert loss.isfinite() and z.grad.isfinite().all()
    with pytest.raises(RequestError, match="temperature=0 is not above 0"):
        Specialists(temperature=0.0)


def test_groups__are_of_classes_that_are_predicted_together():
    """Two kinds of images, each between two classes of its own; two more classes are always told apart."""
    rng = np.random.default_rng(0)
    said = np.zeros((600, 6))
    for i in range(600):
        kind, share = i % 4, rng.uniform(0.3, 0.7)
        if kind < 2:
            said[i, [kind, kind + 2]] = share, 1 - share
        else:
            said[i, kind + 2] = 1.0
    assert groups_of(np.cov(said, rowvar=False), 4, seed=0) == [[0, 2], [1, 3]]


def points(count, seed):
    """Points of three pairs of classes: pairs are far apart, and the two of a pair are a ring and its inside."""
    random = torch.Generator().manual_seed(seed)
    pair, inside = torch.randint(0, 3, (count,), generator=random), torch.randint(0, 2, (count,), generator=random)
    angle = 2 * torch.pi * torch.rand(count, generator=random)
    radius = torch.where(inside == 1, 0.3, 0.8) + 0.1 * torch.randn(count, generator=random)
    center = torch.stack([4.0 * pair - 4, torch.zeros(count)], dim=1)
    xy = center + radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return xy[:, :, None, None], 2 * pair + inside


def test_specialists__raise_the_accuracy_of_their_classes():
    torch.manual_seed(0)
    images, labels = points(300, 0)
    unseen, theirs = points(600, 1)

    def network():
        return nn.Sequential(nn.Flatten(), nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 6))

    def learn(parameters, loss, steps):
        optimizer = AdamW(parameters, lr=0.02)
        for _ in range(steps):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

    general = network()
    learn(general.parameters(), lambda: F.cross_entropy(general(images), labels), 20)
    together = Voting(general, [copy.deepcopy(general) for _ in range(2)], [[0, 1], [2, 3]], 6)
    together.shares.copy_(torch.tensor([1 / 3, 1 / 3]))
    seen = Tapped(together.train(), {name: Tap(name) for name in ("experts", "special")})

    def loss():
        return Specialists()(Outputs(*seen(images)), Outputs(10 * F.one_hot(labels, 6).float()))

    learn(together.experts.parameters(), loss, 80)
    with torch.no_grad():
        before, after = (model.eval()(unseen).argmax(1) == theirs for model in (general, together))
    assert after[theirs < 4].float().mean() > before[theirs < 4].float().mean() + 0.2
    assert after[theirs >= 4].equal(before[theirs >= 4]), "nobody is a specialist for these"
