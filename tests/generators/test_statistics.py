"""The statistics of batches, and those that earlier batches move, against NumPy."""

import copy

import numpy as np
import pytest
import torch

from dfkd.generators.statistics import BatchStatistics, MovingStatistics


@pytest.fixture
def layers():
    """Two BatchNorm layers, one behind the other."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.ReLU(), torch.nn.BatchNorm2d(3)).double().eval()
    module.requires_grad_(False)
    for layer in (module[0], module[2]):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return module


def moments(x):
    return x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))


def test_distances_are_of_the_blend_with_the_batches_before(layers):
    statistics = BatchStatistics(layers)
    moving = MovingStatistics(statistics, momentum=0.9)
    remembered, expected = None, None
    for _ in range(3):
        x = torch.randn(5, 3, 4, 4, dtype=torch.float64)
        inputs = [x.numpy(), layers[:2](x.clone()).numpy()]
        now = [moments(i) for i in inputs]
        blend = now
        if remembered is not None:
            blend = [
                tuple(0.9 * m + 0.1 * n for m, n in zip(*pair, strict=True))
                for pair in zip(remembered, now, strict=True)
            ]
        expected = [
            np.linalg.norm(mean - layer.running_mean.numpy()) + np.linalg.norm(variance - layer.running_var.numpy())
            for (mean, variance), layer in zip(blend, (layers[0], layers[2]), strict=True)
        ]
        with statistics.watched():
            layers(x)
        assert np.allclose([d.item() for d in moving.distances()], expected)  # the module's float32 in watching
        moving.move()
        remembered = blend
    again = MovingStatistics(statistics, momentum=0.9)
    again.load_state_dict(copy.deepcopy(moving.state_dict()))
    assert [d.item() for d in again.distances()] == [d.item() for d in moving.distances()]


def test_the_batches_before_have_no_gradient_and_the_batch_its_share(layers):
    statistics = BatchStatistics(layers)
    moving = MovingStatistics(statistics, momentum=0.75)
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)

    def gradient():
        with statistics.watched():
            layers(x)
        (value,) = torch.autograd.grad(moving.distances()[0], x)
        return value

    whole = gradient()
    moving.move()
    assert not any(t.requires_grad for pair in moving.state_dict()["before"] for t in pair)
    # the same batch again: the blend is what it was, and a quarter of it follows the images
    assert torch.allclose(gradient(), whole / 4, atol=1e-6)
