"""Two views of an image, with a student that is one linear layer, against NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dfkd.distill.losses import DDGSD, ddgsd
from dfkd.distill.setting import Setting
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError


@pytest.fixture
def weight(rng):
    return rng.normal(size=(3, 2 * 4 * 4))


def answer_of(weight):
    """A student whose last feature are the pixels."""
    return lambda view: Outputs(view.flatten(1) @ weight.T, {"last": view.flatten(1)})


def called(loss, weight, view, label):
    loss.bind(Setting(answer_of(weight), answer_of(weight), None, None, None))
    return loss(answer_of(weight)(view), replace(Outputs(torch.eye(3, dtype=torch.float64)[label]), view=view))


def crops_of(monkeypatch, crops):
    monkeypatch.setattr(ddgsd, "draw_crops", lambda images, padding, flip, generator, device: torch.tensor(crops))


def moved(view, crops):
    """Each image shifted by as many rows and columns, with zeros, and mirrored."""
    padded = np.pad(view, ((0, 0), (0, 0), (1, 1), (1, 1)))
    found = [x[:, down : down + 4, right : right + 4] for x, (down, right, _) in zip(padded, crops, strict=True)]
    return np.stack([x[:, :, ::-1] if mirrored else x for x, (_, _, mirrored) in zip(found, crops, strict=True)])


def test_value_and_gradient(rng, weight, monkeypatch, softmax):
    view, label, crops = rng.normal(size=(4, 2, 4, 4)), [0, 2, 1, 1], [(0, 2, 0), (1, 1, 1), (2, 0, 1), (1, 0, 0)]
    crops_of(monkeypatch, crops)
    other = moved(view, crops)

    def formula(w):
        sides = [x.reshape(4, -1) @ w.T for x in (view, other)]
        p, q = (softmax(side / 2) for side in sides)
        both = np.mean([sum(p[i] * np.log(p[i] / q[i]) + q[i] * np.log(q[i] / p[i])) for i in range(4)])
        labels = -np.mean([sum(np.log(softmax(side)[i, label[i]]) for side in sides) for i in range(4)])
        gap = view.reshape(4, -1).mean(axis=0) - other.reshape(4, -1).mean(axis=0)
        return 4 * both + 0.5 * sum(gap**2) + 0.3 * labels

    parameter = torch.tensor(weight, requires_grad=True)
    value = called(DDGSD(2.0, 0.5, 0.3, padding=1), parameter, torch.tensor(view), label)
    assert value.item() == pytest.approx(formula(weight), rel=1e-9)
    value.backward()
    step = rng.normal(size=weight.shape)
    slope = (formula(weight + 1e-6 * step) - formula(weight - 1e-6 * step)) / 2e-6
    assert float((parameter.grad.numpy() * step).sum()) == pytest.approx(slope, rel=1e-6)


def test_a_view_that_is_not_moved_leaves_the_label(rng, weight):
    view, label = torch.tensor(rng.normal(size=(4, 2, 4, 4))), [0, 2, 1, 1]
    weight = torch.tensor(weight)
    value = called(DDGSD(padding=0, flip=False), weight, view, label)
    expected = torch.nn.functional.cross_entropy(view.flatten(1) @ weight.T, torch.tensor(label))
    assert value.item() == pytest.approx(2 * expected.item())
    assert called(DDGSD(padding=0), weight, view, label) != value, "some are mirrored"


def test_the_second_view_follows_torchs_random_state(rng, weight):
    view, weight = torch.tensor(rng.normal(size=(4, 2, 4, 4))), torch.tensor(weight)
    values = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        values.append(called(DDGSD(padding=2), weight, view, [0, 1, 2, 0]).item())
    assert values[0] == values[1] != values[2]


def test_refuses_what_is_out_of_range():
    for name, value, words in (
        ("temperature", -1.0, "above"),
        ("features", -1.0, "at least"),
        ("padding", -1, "at least"),
    ):
        with pytest.raises(RequestError, match=f"{name}=-1 is not {words} 0"):
            DDGSD(**{name: value})
