"""The distance of an image from what BatchNorm layers remember, against the formula in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from dfkd.models import cifar_resnet
from dfkd.models.features import image_distance
from dfkd.models.features.fold_batchnorm import folded
from dfkd.models.features.image_distance import ImageDistances


def settled(module):
    """In evaluation mode, with statistics and affine parameters of their own."""
    random = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.weight.data.uniform_(0.5, 1.5, generator=random)
            layer.bias.data.normal_(generator=random)
            layer.running_mean.normal_(generator=random)
            layer.running_var.uniform_(0.5, 2, generator=random)
    return module.eval().requires_grad_(False)


@pytest.fixture
def network():
    return settled(cifar_resnet(depth=8, width=4, num_classes=5, in_channels=3)).to(memory_format=torch.channels_last)


@pytest.fixture
def images():
    return torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(2))


def measured(network, images):
    distances = ImageDistances(network)
    with distances.watched():
        network(images)
    return distances.take(len(images))


def by_formula(network, images, unused=()):
    """sqrt(mean over layers of (mean over channels of KL(N(m, v) || N(m', v')))^2); epsilon is in both variances."""
    seen = []
    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    handles = [layer.register_forward_pre_hook(lambda layer, x: seen.append((layer, x[0]))) for layer in layers]
    network(images)
    for handle in handles:
        handle.remove()
    squares = []
    for layer, x in seen:
        x = x.double().flatten(2).numpy()
        mean, variance = x.mean(2), x.var(2) + layer.eps
        known_mean, known = layer.running_mean.double().numpy(), layer.running_var.double().numpy() + layer.eps
        kl = np.log(np.sqrt(known / variance)) + (variance + (mean - known_mean) ** 2) / (2 * known) - 0.5
        squares.append(np.delete(kl, unused if layer is layers[0] else (), axis=1).mean(1) ** 2)
    return np.sqrt(np.mean(squares, axis=0))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("cache", [1, 2**21])
def test_distance__is_that_of_the_formula(network, images, layout, cache, monkeypatch):
    monkeypatch.setattr(image_distance, "_CACHE", cache)
    network = network.to(memory_format=layout)
    found = measured(network, images.contiguous(memory_format=layout)).numpy()
    np.testing.assert_allclose(found, by_formula(network, images), rtol=1e-4)


def test_distance__under_autocast_is_computed_in_float32(network, images):
    with torch.autocast("cpu", torch.bfloat16):
        found = measured(network, images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, measured(network, images), rtol=2e-2, atol=0)  # the maps are in bfloat16

    # an exact map, so that nothing but the distance's own arithmetic can differ
    alone = nn.Sequential(nn.BatchNorm2d(4)).eval()
    settled(alone)
    maps = images.repeat(1, 2, 1, 1)[:, :4].bfloat16().float()
    with torch.autocast("cpu", torch.bfloat16):
        found = measured(alone, maps)
    torch.testing.assert_close(found, measured(alone, maps), rtol=0, atol=0)


def test_distance__of_a_folded_network_is_the_same(network, images):
    twin = folded(network, {}, images.split(3))
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in twin.modules())
    torch.testing.assert_close(measured(twin, images), measured(network, images), rtol=1e-3, atol=1e-5)


def test_distance__of_a_channel_that_is_not_used_counts_nowhere(network, images):
    network.bn1.weight[1] = 0
    np.testing.assert_allclose(measured(network, images), by_formula(network, images, unused=[1]), rtol=1e-4)
    twin = folded(network, {}, images.split(3))
    torch.testing.assert_close(measured(twin, images), measured(network, images), rtol=1e-3, atol=1e-5)


def test_distance__does_not_depend_on_the_batch_and_sees_flat_images(network, images):
    torch.testing.assert_close(measured(network, images)[2:3], measured(network, images[2:3]))
    assert measured(network, torch.zeros(1, 3, 12, 12)).isfinite().all()


def test_distance__is_smaller_for_what_a_layer_has_learnt_from(images):
    network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, momentum=None))
    network.train()(images)
    own, noise = measured(network.eval(), images), measured(network, 5 * images.flip(0) + 3)
    assert own.max() < noise.min()


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Flatten(), nn.LayerNorm(432)),
        nn.Sequential(nn.Flatten(), nn.BatchNorm1d(432)),
        nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)),
    ],
)
def test_distance__is_not_a_number_where_no_layer_remembers_maps(network, images):
    assert measured(network.eval(), images).isnan().all()
