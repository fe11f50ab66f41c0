import numpy as np
import pytest
import torch
from torch import nn

from dfkd.errors import RequestError
from dfkd.generators.statistics import BatchStatistics, require_statistics


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


def test_only_passes_within_the_block_are_seen_and_no_hook_stays(layers):
    watcher = BatchStatistics(layers)
    with watcher.watched():
        layers(torch.randn(2, 1, 4, 4, dtype=torch.float64))
    layers(torch.randn(2, 1, 4, 4, dtype=torch.float64))
    assert len(watcher.distances()) == 2
    assert not any(layer._forward_pre_hooks for layer in layers)


def test_a_teacher_that_remembers_nothing_is_refused():
    bare = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(RequestError, match=r"cmi reads the statistics .* this teacher has none"):
        require_statistics(bare, "cmi")
    assert not BatchStatistics(bare).layers
