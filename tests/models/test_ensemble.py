"""Several classifiers as one, against other ways to the same numbers."""

import math

import pytest
import torch
from torch import nn

from dfkd.models.ensemble import Ensemble, Part, leader
from dfkd.models.features.find_taps import find_taps
from dfkd.models.features.taps import Tapped

ABC, BCD = [0, 1, 2], [1, 2, 3]


class Says(nn.Module):
    """Answers whatever the images are with rows of its own; with a gradient to them."""

    def __init__(self, rows):
        super().__init__()
        self.rows = nn.Parameter(torch.as_tensor(rows, dtype=torch.float32))

    def forward(self, images):
        return self.rows + 0 * images.mean()


def rows(*shape, seed=0, scale=2.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ensemble(classes, mixing, *parts):
    """Of parts (logits, classes, and what else a Part has)."""
    made = [Part(Says(logits), own, **more[0] if more else {}) for logits, own, *more in parts]
    return Ensemble(made, classes, mixing).eval()


def answer(*given):
    return ensemble(*given)(torch.zeros(len(given[2][0]), 3, 4, 4)).detach()


def nearest(parts, classes, weights):
    """The least sum of divergences by Newton-like descent on log q; `parts` are (p, its classes, p of the rest)."""
    u = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([u], lr=0.5, max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-16)

    def loss():
        search.zero_grad()
        q, total = u.softmax(0), 0.0
        for (p, own, rest), weight in zip(parts, weights, strict=True):
            mass = q[own].sum()
            if rest is None:
                total = total - weight * (p * (q[own] / mass).log()).sum()
            else:
                total = total - weight * ((p * q[own].log()).sum() + rest * (1 - mass).log())
        total.backward()
        return total

    search.step(loss)
    return u.detach().softmax(0)


def test_mean_logits__of_the_same_classes_is_the_mean_by_weight_and_class():
    a, b = rows(5, 3), rows(5, 3, seed=1)
    assert torch.allclose(answer(3, "mean-logits", (a, ABC), (b, ABC)), (a + b) / 2, atol=1e-6)
    turned = answer(3, "mean-logits", (a, ABC, {"weight": 3.0}), (b[:, [2, 0, 1]], [2, 0, 1]))
    assert torch.allclose(turned, (3 * a + b) / 4, atol=1e-6)
    by_class = answer(3, "mean-logits", (a, ABC, {"class_weights": {1: 4.0}}), (b, ABC))
    assert torch.allclose(by_class[:, 1], (4 * a + b)[:, 1] / 5, atol=1e-6)
    assert torch.allclose(by_class[:, [0, 2]], (a + b)[:, [0, 2]] / 2, atol=1e-6)


def test_mean_logits__of_other_classes_stand_side_by_side_at_one_level():
    a, b = rows(5, 2), 7 + rows(5, 3, seed=1)
    apart = answer(5, "mean-logits", (a, [0, 1]), (b, [2, 3, 4]))
    assert torch.allclose(apart[:, :2], a - a.mean(1, keepdim=True), atol=1e-5)
    assert torch.allclose(apart[:, 2:], b - b.mean(1, keepdim=True), atol=1e-5)
    shared = answer(4, "mean-logits", (rows(5, 3), ABC), (rows(5, 3, seed=1), BCD))
    one, other = (x - x.mean(1, keepdim=True) for x in (rows(5, 3), rows(5, 3, seed=1)))
    assert torch.allclose(shared[:, 1], (one[:, 1] + other[:, 0]) / 2, atol=1e-5)
    assert torch.allclose(shared[:, 0], one[:, 0], atol=1e-5) and torch.allclose(shared[:, 3], other[:, 2], atol=1e-5)


def test_mean_logits__the_other_class_speaks_for_what_is_missing():
    a, b = rows(5, 3), rows(5, 4, seed=1)  # the second class of `a` is its other one
    mixed = answer(4, "mean-logits", (a, [0, 0, 1], {"other": 1}), (b, [0, 1, 2, 3]))
    filled = torch.stack([a[:, 0], a[:, 2], *[a[:, 1] - math.log(2)] * 2], dim=1)
    expected = (filled + b) / 2
    assert torch.allclose(mixed.softmax(1), expected.softmax(1), atol=1e-6)


@pytest.mark.parametrize(
    ("mixing", "weight"),
    [
        ("mean-probabilities", lambda p: torch.ones(len(p))),
        ("confidence", lambda p: p.max(1).values),
        ("entropy", lambda p: 1 - torch.distributions.Categorical(probs=p).entropy() / math.log(p.shape[1])),
    ],
)
def test_probabilities__of_the_same_classes_are_averaged_by_weight(mixing, weight):
    a, b = rows(6, 3), rows(6, 3, seed=1)
    logits = answer(3, mixing, (a, ABC), (b, ABC, {"weight": 2.0}))
    ours, theirs = a.softmax(1), b.softmax(1)
    mean = weight(ours)[:, None] * ours + 2 * weight(theirs)[:, None] * theirs
    assert torch.allclose(logits.softmax(1), mean / mean.sum(1, keepdim=True), atol=1e-5)
    assert torch.allclose(logits.mean(1), torch.zeros(6), atol=1e-5)


def test_probabilities__of_a_teacher_without_doubt_do_not_overflow():
    sure, unsure = torch.tensor([[300.0, 0.0, 0.0]]), torch.zeros(1, 3)
    for mixing in ("mean-probabilities", "confidence", "entropy"):
        logits = answer(3, mixing, (sure, ABC), (unsure, ABC))
        assert logits.isfinite().all() and logits.argmax() == 0
    both = answer(4, "entropy", (sure, ABC), (torch.zeros(1, 3), BCD))
    assert both.isfinite().all() and both.argmax() == 0


def test_probabilities__of_overlapping_classes_are_nearest_to_all_teachers():
    """Unifying Heterogeneous Classifiers: each knows q among its own classes."""
    a, b, c = rows(4, 3, scale=1.0), rows(4, 3, seed=1, scale=1.0), rows(4, 2, seed=2, scale=1.0)
    given = ((a, ABC), (b, BCD, {"weight": 2.0}), (c, [3, 0]))
    q = answer(4, "mean-probabilities", *given).softmax(1)
    for i in range(4):
        parts = [(x[i].double().softmax(0), own, None) for x, own, *_ in given]
        assert torch.allclose(q[i].double(), nearest(parts, 4, [1, 2, 1]), atol=2e-4)


def test_probabilities__with_an_other_class_are_nearest_to_all_teachers():
    """A generalist and two specialists with a class for everything else."""
    general, one, two = rows(4, 4, scale=1.0), rows(4, 3, seed=1, scale=1.0), rows(4, 3, seed=2, scale=1.0)
    given = (
        (general, [0, 1, 2, 3]),
        (one, [0, 1, 0], {"other": 2}),
        (two, [0, 2, 3], {"other": 0, "weight": 1.5}),
    )
    q = answer(4, "mean-probabilities", *given).softmax(1)
    for i in range(4):
        p, r, s = (x[i].double().softmax(0) for x in (general, one, two))
        parts = [(p, [0, 1, 2, 3], None), (r[:2], [0, 1], r[2]), (s[1:], [2, 3], s[0])]
        assert torch.allclose(q[i].double(), nearest(parts, 4, [1, 1, 1.5]), atol=2e-4)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_probabilities__that_are_parts_of_one_distribution_give_it_back(scale):
    """Of sure teachers too, whose words on the classes in common are few."""
    q = rows(50, 6, seed=4, scale=scale).double().softmax(1)
    chain = [[0, 1, 2], [2, 3], [4, 3], [5, 4]]
    given = [((q[:, own] / q[:, own].sum(1, keepdim=True)).log().float(), own) for own in chain]
    found = answer(6, "mean-probabilities", *given).log_softmax(1).double()
    assert torch.allclose(found, q.log(), atol=1e-3 * scale)


def test_probabilities__that_agree_with_one_distribution_give_it_back():
    q = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    a, b = q[:, ABC].log(), (q[:, BCD] / q[:, BCD].sum()).log()
    assert torch.allclose(answer(4, "mean-probabilities", (a, ABC), (b, BCD)).softmax(1), q, atol=1e-4)
    left = torch.cat([q[:, :2], q[:, 2:].sum(1, keepdim=True)], dim=1).log()
    one = answer(4, "mean-probabilities", (left, [0, 1, 0], {"other": 2}), (b, BCD))
    assert torch.allclose(one.softmax(1), q, atol=1e-4)


def test_probabilities__without_a_class_in_common_keep_each_ones_share():
    a, b = rows(3, 2), rows(3, 2, seed=1)
    q = answer(4, "mean-probabilities", (a, [0, 1]), (b, [2, 3])).softmax(1)
    assert torch.allclose(q, torch.cat([a.softmax(1), b.softmax(1)], dim=1) / 2, atol=1e-5)
    sure, unsure = torch.tensor([[5.0, 0.0]]), torch.zeros(1, 2)
    assert answer(4, "entropy", (unsure, [0, 1]), (sure, [2, 3])).softmax(1)[0, 2] > 0.9


def test_other__of_a_teacher_that_has_all_classes_stands_for_none():
    a, b = rows(3, 4), rows(3, 3, seed=1)
    q = answer(3, "mean-probabilities", (a, [0, 1, 2, 0], {"other": 3}), (b, ABC)).softmax(1)
    p = a.softmax(1)[:, :3] + b.softmax(1)
    assert torch.allclose(q, p / p.sum(1, keepdim=True), atol=1e-5)


@pytest.mark.parametrize("mixing", ["mean-logits", "mean-probabilities", "confidence", "entropy"])
@pytest.mark.parametrize("other", [False, True])
def test_gradient__of_every_way_is_that_of_small_steps(mixing, other):
    """Generators learn through the teachers."""
    a, b = (rows(2, 3, scale=1.0), ABC), (rows(2, 3, seed=1, scale=1.0), BCD)
    if other:
        a, b = (a[0], [0, 1, 0], {"other": 2}), (rows(2, 4, seed=1), [0, 1, 2, 3])
    model = ensemble(4, mixing, a, b)
    weights = rows(2, 4, seed=3)

    def value():
        return (model(torch.zeros(2, 3, 4, 4)).softmax(1) * weights).sum()

    value().backward()
    step = 1e-2
    for member in model.members:
        for index in ((0, 0), (1, 2)):
            with torch.no_grad():
                before = member.rows[index].item()
                member.rows[index] = before + step
                more = value()
                member.rows[index] = before - step
                less = value()
                member.rows[index] = before
            assert member.rows.grad[index].item() == pytest.approx(((more - less) / (2 * step)).item(), abs=2e-3)


def network(seed, width=4, classes=3):
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)).eval()


def test_input__reaches_each_in_its_own_normalization_and_size():
    first, second, images = network(0), network(1), torch.rand(2, 3, 8, 8)
    mean, std = torch.tensor([0.4, 0.5, 0.6])[:, None, None], torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    # the first takes (x - 0.5) / 0.25, the second (x - mean) / std at 16 pixels
    scale = tuple((0.25 / std).flatten().tolist())
    shift = tuple(((0.5 - mean) / std).flatten().tolist())
    mixed = Ensemble([Part(first, ABC), Part(second, ABC, size=16, scale=scale, shift=shift)], 3)
    large = nn.functional.interpolate(images, size=(16, 16), mode="bilinear", antialias=True)
    expected = (first((images - 0.5) / 0.25) + second((large - mean) / std)) / 2
    assert torch.allclose(mixed((images - 0.5) / 0.25), expected, atol=1e-5)


def test_taps__are_those_of_the_first_network():
    mixed, images = Ensemble([Part(network(0), ABC), Part(network(1, width=6), ABC)], 3).eval(), torch.rand(2, 3, 8, 8)
    path, first = leader(mixed)
    assert (path, first) == ("members.0.", mixed.members[0]) and leader(first) == ("", first)
    found = find_taps(mixed, images, wanted=("first", "last", "stage", "pre")).taps
    alone = find_taps(first, images, wanted=("first", "last", "stage", "pre")).taps
    assert {name: tap.path for name, tap in found.items()} == {n: f"members.0.{t.path}" for n, t in alone.items()}
    _, features = Tapped(mixed, found)(images)
    _, expected = Tapped(first, alone)(images)
    assert all(torch.equal(features[name], expected[name]) for name in alone)
