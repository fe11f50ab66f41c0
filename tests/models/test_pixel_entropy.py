"""Pixel-wise entropies, against their closed form for features that are linear in the pixels."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from dfkd.config.stages.shared import Input
from dfkd.models.classifier import Classifier
from dfkd.models.features.pixel_entropy import REACH, at_pixels, concept_parts, pixel_entropy
from dfkd.models.features.taps import Tap
from dfkd.models.load import load_model
from dfkd.models.own import OwnNetwork
from dfkd.system.device import resolve_place


class Weighted(nn.Module):
    """Features that are the pixels, each times a number; `weights` [height, width]."""

    def __init__(self, weights) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)
        self.maps = nn.Identity()
        self.linear = nn.Linear(weights.numel(), 3)

    def forward(self, x):
        return self.linear(self.maps(x * self.weights).flatten(1))


def entropies(weights, grid, scale=1.0):
    """Found for one image whose pixels count as much as `weights` say; the features are `scale` times as large."""
    model = load_model(OwnNetwork(Weighted(scale * weights)), Input("none", len(weights)), channels=1)
    classifier = Classifier(model, resolve_place("cpu", "fp32"), {"map": Tap("maps")})
    return pixel_entropy(classifier, torch.rand(1, 1, *weights.shape), grid, steps=80)[0].numpy()


@pytest.mark.parametrize(("side", "grid", "scale"), [(4, 4, 50.0), (5, 3, 1.0)])
def test_pixel_entropy__of_linear_features(side, grid, scale):
    """sigma_i^2 = reach^2 / (parts * w_i), where w_i is the part's share of the squared gradient's length."""
    weights = torch.linspace(1, 3, side * side).reshape(side, side)
    found = entropies(weights, grid, scale)
    cell = -(-side // grid)
    squares = np.zeros((cell * grid, cell * grid))
    squares[:side, :side] = weights.square().numpy()
    share = squares.reshape(grid, cell, grid, cell).sum(axis=(1, 3)) / squares.sum()
    expected = np.log(REACH / np.sqrt(grid * grid * share)) + math.log(2 * math.pi * math.e) / 2
    np.testing.assert_allclose(found, expected, atol=0.2)


class Blurred(nn.Module):
    """Features that are a convolution of the pixels, which autocast computes in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(1, 4, 3, padding=1)
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(self.maps(x).mean(dim=(2, 3)))


def test_pixel_entropy__in_bfloat16_is_that_in_float32():
    torch.manual_seed(0)
    model = load_model(OwnNetwork(Blurred()), Input("none", 6), channels=1)
    image, found = torch.rand(1, 1, 6, 6), []
    for precision in ("fp32", "bf16"):
        classifier = Classifier(model, resolve_place("cpu", precision), {"map": Tap("maps")})
        found.append(pixel_entropy(classifier, image, 3, steps=30))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0.1)


def test_pixel_entropy__is_high_where_the_content_is_discarded():
    weights = torch.ones(6, 6)
    weights[:, 3:] = 0.05
    found = entropies(weights, 3)
    assert found[:, 0].max() + 1 < found[:, 2].min()


def test_at_pixels__gives_every_pixel_its_part():
    parts = torch.arange(4.0).reshape(1, 2, 2)
    expected = torch.tensor([[0.0, 0, 1], [0, 0, 1], [2, 2, 3]])
    assert torch.equal(at_pixels(parts, 2, (3, 3))[0], expected)


def test_concepts__are_counted_on_both_sides():
    entropy = np.array([[0.0, 1.0, 1.0], [0.1, 0.5, 1.1]])
    foreground = np.array([[True, False, False], [True, False, False]])
    # the background's mean is 0.9: below 0.7 there are two parts on the foreground and one on the background
    assert [part.sum() for part in concept_parts(entropy, foreground)] == [2, 1]
    with pytest.raises(ValueError, match="no background"):
        concept_parts(entropy, np.ones((2, 3), bool))
