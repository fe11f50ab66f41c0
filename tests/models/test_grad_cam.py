"""Grad-CAM, against the class activation map that it is for a network of pooled maps and one linear layer."""

import numpy as np
import pytest
import torch
from torch import nn

from dfkd.config.stages.shared import Input
from dfkd.models.classifier import Classifier
from dfkd.models.features.grad_cam import deepest_map, grad_cam
from dfkd.models.features.taps import Tap
from dfkd.models.load import load_model
from dfkd.models.own import OwnNetwork
from dfkd.system.device import resolve_place
from dfkd.system.errors import RequestError


class Pooled(nn.Module):
    """Maps of the input's resolution, their means, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(self.conv(x).mean(dim=(2, 3)))


@pytest.fixture
def classifier():
    model = load_model(OwnNetwork(Pooled()), Input("none", 6))
    return Classifier(model, resolve_place("cpu", "fp32"))


def test_grad_cam__is_the_class_activation_map_of_pooled_maps(classifier):
    view = torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    classes = torch.tensor([0, 1, 2, 0, 1])
    found = grad_cam(classifier, Tap("conv"), view, classes).numpy()
    module = classifier.model.module
    maps = module.conv(view).detach().numpy()
    cams = np.maximum(np.einsum("nk,nkhw->nhw", module.linear.weight.detach().numpy()[classes], maps), 0)
    np.testing.assert_allclose(found, cams / cams.max(axis=(1, 2), keepdims=True), atol=1e-5)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_grad_cam__without_a_positive_value_is_zero(classifier):
    with torch.no_grad():
        classifier.model.module.linear.weight.zero_()
    assert not grad_cam(classifier, Tap("conv"), torch.randn(2, 1, 6, 6), torch.tensor([0, 1])).any()


def test_deepest_map__is_the_last_of_several_resolutions():
    place = resolve_place("cpu", "fp32")
    model = load_model("cifar_resnet:depth=8,width=4", Input(image_size=32))
    assert deepest_map(Classifier(model, place)).path.startswith("layer3")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(RequestError, match="stage"):
        deepest_map(Classifier(load_model(OwnNetwork(flat), Input("none", 4), channels=1), place))


class Decided(Pooled):
    """Logits of the most probable class alone, as of a program without gradients."""

    def forward(self, x):
        return nn.functional.one_hot(super().forward(x).argmax(dim=1), 3).float()


def test_grad_cam__of_logits_without_a_gradient_is_refused():
    decided = Classifier(load_model(OwnNetwork(Decided()), Input("none", 6)), resolve_place("cpu", "fp32"))
    with pytest.raises(RequestError, match="no gradient of the logits reaches conv"):
        grad_cam(decided, Tap("conv"), torch.randn(2, 1, 6, 6), torch.tensor([0, 1]))
