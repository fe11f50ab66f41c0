"""The statistics of batches, and those that earlier batches move, against NumPy."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from dfkd.models.features.bn_statistics import BatchStatistics, MovingStatistics, _Moments, require_statistics
from dfkd.system.errors import RequestError


@pytest.fixture
def layers():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5))
    for layer in layers:
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return layers.double().eval()


def test_distances_are_those_of_the_formula_and_reach_the_images(layers):
    x = torch.randn(6, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    watcher = BatchStatistics(layers)
    with watcher.watched():
        layers(x)
    found = watcher.distances()
    with torch.no_grad():
        inner = layers[0](x)
        outer = layers[3](layers[2](layers[1](inner)))
    for distance, value, layer in zip(found, (inner, outer), (layers[1], layers[4]), strict=True):
        v = value.numpy()
        axes = (0, 2, 3) if v.ndim == 4 else (0,)
        expected = np.linalg.norm(v.mean(axes) - layer.running_mean.numpy())
        expected += np.linalg.norm(v.var(axes) - layer.running_var.numpy())
        assert distance.item() == pytest.approx(expected, rel=1e-6)
    torch.stack(found).sum().backward()
    assert x.grad.abs().min() > 0


@pytest.mark.parametrize("shape", [(4, 3, 5, 2), (6, 3)])
def test_moments_and_their_gradients_are_those_of_numpy(shape, rng):
    values = rng.normal(2, 3, size=shape)
    axes = (0, 2, 3)[: len(shape) - 1]
    x = torch.tensor(values, requires_grad=True)
    mean, variance = _Moments.apply(x)
    np.testing.assert_allclose(mean.detach(), values.mean(axes), rtol=1e-9)
    np.testing.assert_allclose(variance.detach(), values.var(axes), rtol=1e-9)
    assert torch.autograd.gradcheck(_Moments.apply, (x,))
    low = x.detach().to(torch.bfloat16).contiguous().requires_grad_(True)
    mean, variance = _Moments.apply(low)
    assert mean.dtype == variance.dtype == torch.float32  # bfloat16 would keep three digits of them
    exact = low.detach().double().numpy()
    np.testing.assert_allclose(mean.detach(), exact.mean(axes), rtol=1e-4)
    np.testing.assert_allclose(variance.detach(), exact.var(axes), rtol=1e-4)


def test_a_channel_that_is_constant_has_a_gradient():
    x = torch.ones(2, 3, 4, 4, requires_grad=True)
    mean, variance = _Moments.apply(x)
    (mean.sum() + variance.sum()).backward()
    assert variance.max() < 1e-9
    torch.testing.assert_close(x.grad, torch.full_like(x, 1 / 32))


def test_only_passes_within_the_block_are_seen_and_no_hook_stays(layers):
    watcher = BatchStatistics(layers)
    with watcher.watched():
        layers(torch.randn(2, 1, 4, 4, dtype=torch.float64))
    layers(torch.randn(2, 1, 4, 4, dtype=torch.float64))
    assert len(watcher.distances()) == 2
    assert not any(layer._forward_pre_hooks for layer in layers)


def test_a_teacher_that_remembers_nothing_is_refused():
    bare = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(RequestError, match=r"^it reads the statistics .* this teacher has none"):
        require_statistics(bare)
    assert not BatchStatistics(bare).layers


@pytest.fixture
def two_layers():
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


def test_distances_are_of_the_blend_with_the_batches_before(two_layers):
    statistics = BatchStatistics(two_layers)
    moving = MovingStatistics(statistics, momentum=0.9)
    remembered, expected = None, None
    for _ in range(3):
        x = torch.randn(5, 3, 4, 4, dtype=torch.float64)
        inputs = [x.numpy(), two_layers[:2](x.clone()).numpy()]
        now = [moments(i) for i in inputs]
        blend = now
        if remembered is not None:
            blend = [
                tuple(0.9 * m + 0.1 * n for m, n in zip(*pair, strict=True))
                for pair in zip(remembered, now, strict=True)
            ]
        expected = [
            np.linalg.norm(mean - layer.running_mean.numpy()) + np.linalg.norm(variance - layer.running_var.numpy())
            for (mean, variance), layer in zip(blend, (two_layers[0], two_layers[2]), strict=True)
        ]
        with statistics.watched():
            two_layers(x)
        assert np.allclose([d.item() for d in moving.distances()], expected)
        moving.move()
        remembered = blend
    again = MovingStatistics(statistics, momentum=0.9)
    again.load_state_dict(copy.deepcopy(moving.state_dict()))
    assert [d.item() for d in again.distances()] == [d.item() for d in moving.distances()]


def test_a_layer_that_runs_twice_is_remembered_twice():
    layer = nn.BatchNorm2d(3).eval()
    statistics = BatchStatistics(nn.Sequential(layer, nn.ReLU(), layer))
    moving, again = (MovingStatistics(statistics, momentum=0.9) for _ in range(2))
    for _ in range(2):
        with statistics.watched():
            layer(layer(torch.randn(5, 3, 4, 4)).relu())
        moving.move()
    again.load_state_dict(moving.state_dict())
    assert len(again.distances()) == 2
    assert [d.item() for d in again.distances()] == [d.item() for d in moving.distances()]


def test_the_batches_before_have_no_gradient_and_the_batch_its_share(two_layers):
    statistics = BatchStatistics(two_layers)
    moving = MovingStatistics(statistics, momentum=0.75)
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)

    def gradient():
        with statistics.watched():
            two_layers(x)
        (value,) = torch.autograd.grad(moving.distances()[0], x)
        return value

    whole = gradient()
    moving.move()
    assert not any(t.requires_grad for pair in moving.state_dict()["before"] for t in pair)
    # the same batch again: the blend is what it was, and a quarter of it follows the images
    assert torch.allclose(gradient(), whole / 4, atol=1e-6)
