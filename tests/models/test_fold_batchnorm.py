"""BatchNorm folded into convolutions: the same answers, and no folding where it would change them."""

import threading

import pytest
import torch
from torch import nn

from dfkd.config.stages.shared import Input
from dfkd.models import cifar_resnet
from dfkd.models.classifier import Classifier
from dfkd.models.features.fold_batchnorm import folded
from dfkd.models.features.taps import Tap, Tapped
from dfkd.models.load import load_model
from dfkd.system.device import resolve_place


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
    found = folded(network, taps, images.split(2))
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
    """Two convolutions with a BatchNorm each; what `kind` says stands between or beside the first two."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=kind != "by batch")
        self.good, self.good_norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.again = self.norm if kind == "two names" else None
        self.fc = nn.Linear(4, 5)
        self.kept = None
        if kind == "kept by a hook":
            self.conv.register_forward_hook(lambda layer, given, made: setattr(self, "kept", made))

    def forward(self, x):
        if self.kind == "asks the norm":
            x = x.to(self.norm.weight.dtype)
        y = self.conv(x)
        if self.kind == "between":
            y = torch.relu(y)
        if self.kind == "in place between":
            y = torch.relu_(y)
        z = self.norm(y)
        if self.kind == "read besides":
            z = z + y
        if self.kind == "kept by a hook":
            z = z + self.kept
        if self.kind == "norm twice":
            z = self.norm(y * 2) + z
        if self.kind == "conv twice":
            z = z + self.conv(x + 1)
        return self.fc(self.good_norm(self.good(z)).mean((2, 3)))


@pytest.mark.parametrize("kind", ["read besides", "asks the norm", "kept by a hook"])
def test_where_the_copy_would_say_something_else_or_nothing_all_stays(images, kind):
    network = settled(Net(kind))
    expected = network(images)
    found = folded(network, {}, images.split(2))
    torch.testing.assert_close(found(images), expected, rtol=1e-4, atol=1e-4)
    assert kind == "kept by a hook" or found is network


@pytest.mark.parametrize("kind", ["between", "in place between", "norm twice", "conv twice", "by batch", "two names"])
def test_what_is_no_pair_stays_and_the_rest_is_folded(images, kind):
    network = settled(Net(kind))
    found = folded(network, {}, images.split(2))
    assert "norm" in norms(found) and "good_norm" not in norms(found)
    torch.testing.assert_close(found(images), network(images), rtol=1e-4, atol=1e-4)


def test_what_is_tapped_watched_or_still_learns_stays(images):
    def left(network, **taps):
        found = folded(network, taps, images.split(2))
        for ours, theirs in zip(said(found, taps), said(network, taps), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        return norms(found)

    def said(network, taps):
        tapped = Tapped(network, taps)
        answer = tapped(images)
        tapped.remove()
        return answer

    network = settled(Net("plain"))
    assert left(network) == left(network, a=Tap("norm")) == []
    assert left(network, a=Tap("conv")) == ["norm"]
    assert left(network, a=Tap("norm", "input")) == ["norm", "good_norm"]
    for watch in (network.norm.register_forward_hook, network.conv.register_full_backward_hook):
        handle = watch(lambda *given: None)
        assert left(network) == ["norm"]
        handle.remove()
    nn.utils.parametrizations.weight_norm(network.conv)
    assert left(network) == ["norm"]
    network = settled(Net("plain"))
    network.norm.training = network.conv.training = True
    assert left(network) == ["norm"]


def test_a_network_that_cannot_be_copied_or_takes_no_such_images_runs_as_it_is(images):
    network = settled(Net("plain"))
    assert folded(network, {}, images[:, :2].split(2)) is network
    network.lock = threading.Lock()
    assert folded(network, {}, images.split(2)) is network


def test_a_classifier_that_folds_says_the_same_and_its_model_stays():
    model = load_model("cifar_resnet:depth=8,width=4", Input("cifar10", 12), classes=5)
    settled(model.module)
    place, pixels = resolve_place("cpu", "fp32"), torch.randint(0, 256, (3, 12, 12, 3), dtype=torch.uint8)
    plain, quick = (Classifier(model, place, fold=fold) for fold in (False, True))
    torch.testing.assert_close(quick(pixels).logits, plain(pixels).logits, rtol=1e-4, atol=1e-4)
    assert not norms(quick._run.module) and plain._run.module is model.module and len(norms(model.module)) == 7
