"""BatchNorm folded into convolutions: the same answers, and no folding where it would change them."""

import threading

import pytest
import torch
from torch import nn

from dfkd.folding import folded
from dfkd.models.cifar_resnet import cifar_resnet
from dfkd.taps import Tap, Tapped


def settled(module):
    """In evaluation mode, with statistics and affine parameters that are not those of a fresh BatchNorm."""
    random = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data.uniform_(0.5, 1.5, generator=random)
            layer.bias.data.normal_(generator=random)
            if layer.running_mean is not None:
                layer.running_mean.normal_(generator=random)
                layer.running_var.uniform_(0.5, 2, generator=random)
    return module.eval().requires_grad_(False)


def norms(module):
    return [name for name, layer in module.named_modules() if isinstance(layer, nn.BatchNorm2d)]


@pytest.fixture
def images():
    return torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(2))


def test_a_resnet_says_the_same_without_its_batch_norms(images):
    network = settled(cifar_resnet(depth=8, width=4, num_classes=5, in_channels=3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    taps = {"pre": Tap("layer2.0.bn2"), "last": Tap("linear", "input")}
    found = folded(network, taps, images[:2])
    assert not norms(found) and len(norms(network)) == 7
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(p.requires_grad for p in found.parameters())
    ours, theirs = Tapped(found, taps)(images), Tapped(network, taps)(images)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-4)
    for name in taps:
        torch.testing.assert_close(ours[1][name], theirs[1][name], rtol=1e-4, atol=1e-4)
    # by the formula, for the first layer: w * gamma / sqrt(var + eps), and beta - mean * gamma / sqrt(var + eps)
    norm = network.bn1
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = network.conv1.weight.double() * scale[:, None, None, None]
    torch.testing.assert_close(found.conv1.weight.double(), weight, rtol=1e-6, atol=1e-7)
    bias = norm.bias.double() - norm.running_mean.double() * scale
    torch.testing.assert_close(found.conv1.bias.double(), bias, rtol=1e-6, atol=1e-6)


class Net(nn.Module):
    """A convolution and a BatchNorm, with what may stand between and beside them."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=kind != "by batch")
        self.again = self.norm if kind == "two names" else None
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        y = self.conv(x)
        if self.kind == "between":
            y = torch.relu(y)
        if self.kind == "in place between":
            y = torch.relu_(y)
        z = self.norm(y)
        if self.kind == "read besides":
            z = z + y
        if self.kind == "norm twice":
            z = self.norm(self.conv(x) * 2) + z
        if self.kind == "conv twice":
            z = z + self.conv(x + 1)
        return self.fc(z.mean((2, 3)))


KINDS = ["between", "in place between", "read besides", "norm twice", "conv twice", "by batch", "two names"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_would_say_something_else_stays_as_it_is(images, kind):
    network = settled(Net(kind))
    assert folded(network, {}, images) is network


def test_a_pair_is_folded_unless_the_convolution_is_tapped_or_watched(images):
    network = settled(Net("plain"))
    assert not norms(folded(network, {}, images))
    assert not norms(folded(network, {"a": Tap("norm")}, images))
    assert folded(network, {"a": Tap("conv")}, images) is network
    assert folded(network, {"a": Tap("norm", "input")}, images) is network
    handle = network.norm.register_forward_hook(lambda *given: None)
    assert folded(network, {}, images) is network
    handle.remove()
    nn.utils.parametrizations.weight_norm(network.conv)
    assert folded(network, {}, images) is network


def test_a_network_that_cannot_be_copied_runs_as_it_is(images):
    network = settled(Net("plain"))
    network.lock = threading.Lock()
    assert folded(network, {}, images) is network
