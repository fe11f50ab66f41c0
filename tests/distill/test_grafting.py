"""Filter grafting against a histogram of NumPy, and whose filters go where."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from dfkd.distill.grafting import entropy, graft, grafts_with, kept_share


def network(seed, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 3, 1), nn.Linear(1, 2))


@pytest.mark.parametrize("seed", range(3))
def test_entropy__is_that_of_a_histogram_of_ten_bins(seed):
    values = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    p = np.histogram(values.numpy().ravel(), bins=10)[0] / values.numel()
    assert entropy(values).item() == pytest.approx(-sum(x * math.log(x) for x in p if x), rel=1e-9)


def test_share__is_larger_for_the_layer_that_knows_more():
    flat = torch.linspace(0, 1, 64).view(4, 4, 2, 2)
    dead = torch.zeros(4, 4, 2, 2)
    dead[0, 0, 0, 0] = 1.0
    gap = math.log(10) + sum(x * math.log(x) for x in (63 / 64, 1 / 64))
    assert kept_share(flat, dead) == pytest.approx(0.4 / math.pi * math.atan(500 * gap) + 0.5, abs=1e-3)
    assert kept_share(flat, dead) + kept_share(dead, flat) == pytest.approx(1)
    assert kept_share(flat, flat) == 0.5


def test_graft__mixes_each_with_the_one_before_it_as_they_were():
    students = [network(seed) for seed in range(3)]
    before = [{name: value.clone() for name, value in student.state_dict().items()} for student in students]
    graft(students)
    for number, student in enumerate(students):
        own, theirs = before[number], before[number - 1]
        for name, value in student.state_dict().items():
            layer = "2.weight" if name >= "2" else "0.weight"
            kept = kept_share(own[layer], theirs[layer])
            torch.testing.assert_close(value, kept * own[name] + (1 - kept) * theirs[name], check_dtype=False)
    assert students[0].state_dict()["1.num_batches_tracked"] == 0


def test_graft__needs_convolutions_of_the_same_shapes():
    states = [one.state_dict() for one in (network(0), network(1), network(0, width=8), nn.Linear(2, 2))]
    assert grafts_with(states[0], states[1])
    assert not grafts_with(states[0], states[2])
    assert not grafts_with(states[3], states[3])
