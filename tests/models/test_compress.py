"""Networks made smaller: their multiplications, their widths as text, and layers that compute as in int8."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dfkd import models
from dfkd.config.stages.shared import Input
from dfkd.models.architectures.pruned import parse_widths, spell_widths
from dfkd.models.cost import multiplications
from dfkd.models.fake_int8 import Rounded, fake_int8
from dfkd.models.load import Model, load_model
from dfkd.models.prune import prune
from dfkd.models.reduce import to_int8
from dfkd.system.errors import RequestError


def trained(text: str, size: int = 16) -> Model:
    """A network whose BatchNorms differ from each other, as trained ones do."""
    torch.manual_seed(0)
    model = load_model(text, Input(image_size=size))
    for layer in model.module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.2)
            nn.init.normal_(layer.running_mean, 0, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return model


def test_multiplications__are_those_of_the_layers():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.Flatten(), nn.Linear(128, 5)
    )
    by_hand = 8 * 8 * 8 * 3 * 9 + 4 * 4 * 8 * 9 + 128 * 5
    assert multiplications(network.train(), torch.zeros(1, 3, 8, 8)) == by_hand
    assert network.training
    # the residual networks paper: 41 million for ResNet-20
    assert multiplications(models.cifar_resnet(20), torch.zeros(1, 3, 32, 32)) == pytest.approx(40.8e6, rel=0.01)


@pytest.mark.parametrize("text", ["cifar_resnet:depth=8,width=16", "mobilenet_v2_small:width=0.25"])
@pytest.mark.parametrize("share", [0.25, 0.0625])
def test_prune__keeps_a_share_of_the_multiplications_and_is_built_from_its_text(text, share):
    model = trained(text)
    example = torch.randn(2, 3, 16, 16)
    pruned = prune(model, share)
    small, whole = pruned.model, dict(pruned.whole.named_modules())
    left = multiplications(small.module, example[:1]) / multiplications(model.module, example[:1])
    assert 0.97 * share < left <= share
    again = load_model(small.architecture)
    assert (again.classes, again.channels) == (10, 3)
    again.module.load_state_dict(small.module.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again.module(example), small.module(example))
    for (name, _), kept in pruned.kept.items():
        weight, before = small.module.get_submodule(name).weight, whole[name].weight[kept]
        inputs = [slice(None), *(some for some in pruned.kept.values() if some.max() < before.shape[1])]
        assert any(torch.equal(weight, before[:, some]) for some in inputs), name


def test_prune__of_almost_nothing_changes_almost_nothing():
    """The channels of least norm go: a network with dead channels answers as before."""
    model = trained("cifar_resnet:depth=8,width=8")
    block = model.module.layer2[0]
    with torch.no_grad():
        for layer in (block.conv1, block.bn1):
            layer.weight[::2] = 0
        block.bn1.bias[::2] = 0
        block.bn1.running_mean[::2] = 0
        block.conv2.weight[:, ::2] = 0
    from dfkd.models import prune as pruning

    example = torch.randn(2, 3, 16, 16)
    whole = pruning._cuttable(model)
    with torch.no_grad():
        torch.testing.assert_close(whole.module(example), model.module(example))
    found, kept = pruning._with(0.5, whole, example, model)
    left = found.layer2[0].conv1.weight
    assert len(left) == 8 and left.flatten(1).norm(dim=1).min() > 0
    assert kept["layer2.0.conv1", 0].tolist() == list(range(1, 16, 2))


def test_cifar_resnet__shortcut_of_a_convolution_begins_as_the_padded_one():
    padded, learned = models.cifar_resnet(8, 4).eval(), models.cifar_resnet(8, 4, shortcut="conv").eval()
    missing = learned.load_state_dict(padded.state_dict(), strict=False).missing_keys
    assert missing == ["layer2.0.shortcut.weight", "layer3.0.shortcut.weight"]
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(learned(x), padded(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shortcut__of_few_channels_learns_what_the_strided_one_would(layout):
    """oneDNN's own gradient of it writes past its memory: in NumPy's stead, the strided one in float64."""
    torch.manual_seed(0)
    network = models.cifar_resnet(8, 4, shortcut="conv").to(memory_format=layout)
    layer = network.layer2[0].shortcut
    assert type(layer).__name__ == "Subsampled"
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    strided = F.conv2d(x, weight := layer.weight.detach().double().requires_grad_(), stride=2)
    ours = layer(x.float().to(memory_format=layout))
    torch.testing.assert_close(ours.double(), strided)
    for output in (ours, strided):
        output.square().sum().backward()
    torch.testing.assert_close(layer.weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-4)


def test_widths__are_read_as_they_are_spelled():
    widths = {"conv1": (8, 3), "layer1.0.bn1": (5,)}
    assert spell_widths(widths) == "conv1=8x3 layer1.0.bn1=5"
    assert parse_widths(spell_widths(widths)) == widths


@pytest.mark.parametrize(
    ("widths", "said"),
    [
        ("conv1", "'conv1', not LAYER=OUTxIN"),
        ("conv1=-3x3", "'conv1=-3x3', not LAYER=OUTxIN"),
        ("conv7=3x3", "no layer 'conv7'"),
        ("conv1=64x3", "layer 'conv1' of 8x3 cannot be one of 64x3"),
        ("conv1=0x3", "cannot be one of 0x3"),
        ("bn1=3x3", "layer 'bn1' of 8 cannot be one of 3x3"),
        ("layer1=3", "is a Sequential, which has no widths"),
    ],
)
def test_pruned__refuses_widths_that_are_none_of_the_networks(widths, said):
    with pytest.raises(RequestError, match=said):
        load_model(f"pruned:network='cifar_resnet:depth=8,width=8',widths={widths}")


def reference(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, low: float, high: float) -> np.ndarray:
    """A linear layer on 8-bit numbers, in NumPy."""
    scale = (high - low) / 255
    zero = np.round(-128 - low / scale)
    x = (np.clip(np.round(x / scale) + zero, -128, 127) - zero) * scale
    scales = np.abs(weight).max(axis=1, keepdims=True) / 127
    return x @ (np.round(weight / scales) * scales).T + bias


def test_rounded__computes_as_in_int8_and_passes_the_gradient_within_the_range(rng):
    layer = nn.Linear(6, 4)
    nn.Module.train(Rounded.of(layer))
    x = torch.tensor(rng.normal(size=(5, 6)), dtype=torch.float32)
    x[0, 0] = 4.0  # the range
    first = layer(x)
    low, high = min(0, float(x.min())), 4.0
    assert (float(layer.low), float(layer.high)) == (pytest.approx(low), 4.0)
    arrays = [v.detach().double().numpy() for v in (layer.weight, layer.bias)]
    np.testing.assert_allclose(first.detach().numpy(), reference(x.double().numpy(), *arrays, low, high), atol=1e-5)
    x = torch.cat([x, torch.full((1, 6), 9.0)]).requires_grad_()
    layer.eval()
    layer(x).sum().backward()
    assert not x.grad[-1].any(), "9 is beyond the range"
    assert x.grad[1:-1].abs().min() > 0
    rounded = (
        (layer.weight / layer.weight.abs().amax(1, keepdim=True) * 127).round()
        * layer.weight.abs().amax(1, keepdim=True)
        / 127
    )
    torch.testing.assert_close(x.grad[1], rounded.sum(dim=0).detach())
    layer.train()
    layer(torch.full((1, 6), 14.0))
    assert float(layer.high) == pytest.approx(0.99 * 4 + 0.01 * 14)


def test_fake_int8__is_the_network_until_it_has_seen_a_batch_and_then_what_is_exported():
    model = trained("cifar_resnet:depth=8,width=4")
    network, views = fake_int8(model.module, 3, 16), torch.randn(4, 3, 16, 16)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(views), model.module(views), rtol=1e-4, atol=1e-4)
        network.train()(views)
        ours = network.eval()(views)
        theirs = to_int8(network, views.split(2), "net")(views)
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
        assert (ours - model.module(views)).abs().max() > 1e-3


def test_quantized__is_built_from_its_text():
    model = trained("cifar_resnet:depth=8,width=4")
    network = fake_int8(model.module, 3, 16)
    with torch.no_grad():
        network.train()(torch.randn(4, 3, 16, 16))
    again = load_model("quantized:network='cifar_resnet:depth=8,width=4',image_size=16", Input(image_size=16))
    again.module.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(again.module(x), network.eval()(x))
    with pytest.raises(RequestError, match="no convolution or linear layer"):
        load_model("quantized:network=torch.nn.Flatten")


def test_fake_int8__learns_what_rounding_has_cost():
    """Trained with rounding, the answers are nearer to the network's than rounded without."""
    model = trained("cifar_resnet:depth=8,width=4")
    network, views = fake_int8(model.module, 3, 16), torch.randn(32, 3, 16, 16)
    with torch.no_grad():
        target = model.module(views)
        network.train()(views)
    errors = []
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    for _ in range(30):
        error = F.mse_loss(network(views), target)
        errors.append(error.item())
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert errors[-1] < 0.7 * errors[0]
