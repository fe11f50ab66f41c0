"""Fit of the student's last layer to the teacher's logits."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from dfkd.config.stages.shared import Input
from dfkd.distill.init.classifier import ClassifierFit, classifier_of
from dfkd.models.classifier import Classifier
from dfkd.models.load import load_model
from dfkd.system.device import Place
from dfkd.system.errors import RequestError
from dfkd.training.sources import Batch, WithoutGenerator

SIZE, CLASSES = 8, 4
PLACE = Place(torch.device("cpu"), torch.float32)


class Images(WithoutGenerator):
    """Stored images as a source, in their order."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(3)
        self.pixels = torch.randint(0, 256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
        self.images, self.given = count, 0

    def sample(self, count, share=None):
        rows = torch.arange(self.given, self.given + count) % self.images
        self.given += count
        return Batch(self.pixels[rows], None)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        assert not state


def network(classes, bias=True, last=None):
    """A network whose features are a ReLU layer's, in evaluation mode."""
    layers = nn.Flatten(), nn.Linear(3 * SIZE**2, 12), nn.BatchNorm1d(12), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(12, classes, bias=bias), *([] if last is None else [last])).eval()


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return Classifier(load_model("cifar_resnet:depth=8,width=4", Input(image_size=SIZE), classes=CLASSES), PLACE)


def fitted(student, teacher, count, views, monkeypatch):
    """Fit the last layer on `views` views of as many images or fewer, in batches of 16; the images of the views."""
    monkeypatch.setattr("dfkd.distill.init.classifier._BATCH", 16)
    monkeypatch.setattr("dfkd.distill.init.classifier._VIEWS_AN_IMAGE", views // count)
    images = Images(count)
    fit = ClassifierFit(images, "4")
    assert fit.views == views
    fit.run(student, teacher, lambda batch: teacher.preprocess(batch.pixels))
    assert images.given == views
    return images.pixels[torch.arange(views) % count]


@pytest.mark.parametrize(("bias", "repeats"), [(True, 1), (False, 1), (True, 2)])
def test_run__gives_the_ridge_regression_of_the_logits_on_the_features(teacher, bias, repeats, monkeypatch):
    torch.manual_seed(1)
    student = network(CLASSES, bias).train()
    before = copy.deepcopy(student.state_dict())
    pixels = fitted(student, teacher, 72, 72 * repeats, monkeypatch)
    after = student.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if not name.startswith("4."))
    with torch.no_grad():
        view = teacher.preprocess(pixels)
        x = student.eval()[:4](view).double().numpy()
        logits = teacher.outputs(view).logits.double().numpy()
    # an independent form of the same problem: rows of the penalty below the data, and a column that has none
    y = logits - logits.mean(1, keepdims=True)
    spread = ((x - x.mean(0)) ** 2).mean() if bias else (x**2).mean()
    penalty = len(x) * spread * (1e-3 + 0.3 * x.shape[1] / 72)
    rows = np.vstack([x, np.sqrt(penalty) * np.eye(x.shape[1])])
    if bias:
        rows = np.hstack([rows, np.r_[np.ones(len(x)), np.zeros(x.shape[1])][:, None]])
    best = np.linalg.lstsq(rows, np.vstack([y, np.zeros((x.shape[1], CLASSES))]), rcond=None)[0]
    np.testing.assert_allclose(after["4.weight"].T, best[: x.shape[1]], rtol=1e-3, atol=1e-5)
    if bias:
        np.testing.assert_allclose(after["4.bias"], best[-1], rtol=1e-3, atol=1e-5)


def test_run__a_student_that_can_have_the_teachers_logits_has_them(teacher, monkeypatch):
    monkeypatch.setattr("dfkd.distill.init.classifier._RIDGE", 0.0)
    monkeypatch.setattr("dfkd.distill.init.classifier._RIDGE_OF_FEW", 0.0)
    torch.manual_seed(2)
    own = Classifier(load_model("cifar_resnet:depth=8,width=4", Input(image_size=SIZE), classes=CLASSES), PLACE)
    own.model.module.load_state_dict(teacher.model.module.state_dict())
    nn.init.normal_(own.model.module.linear.weight)
    fit = ClassifierFit(Images(64), "linear")
    assert fit.views == 8 * 64
    fit.run(own.model.module, teacher, lambda batch: teacher.preprocess(batch.pixels))
    ours, theirs = (one(Images(32).sample(32).pixels).logits.softmax(1) for one in (own, teacher))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_run__leaves_out_views_without_finite_logits(teacher, monkeypatch):
    outputs = Classifier.outputs

    def broken(self, view):
        found = outputs(self, view)
        found.logits[3] = float("nan")
        return found

    torch.manual_seed(1)
    whole = network(CLASSES)
    student, alone = copy.deepcopy(whole), copy.deepcopy(whole)
    monkeypatch.setattr(Classifier, "outputs", broken)
    fitted(student, teacher, 48, 48, monkeypatch)
    assert student[4].weight.isfinite().all()
    monkeypatch.setattr(Classifier, "outputs", lambda self, view: outputs(self, view * float("nan")))
    with pytest.raises(RequestError, match="no view has finite teacher logits and student features"):
        fitted(alone, teacher, 48, 48, monkeypatch)
    assert torch.equal(alone[4].weight, whole[4].weight)


class Doubled(nn.Module):
    """Changes its input in place, as a scale of the logits does."""

    def forward(self, x):
        return x.mul_(2)


class TwoHeads(nn.Module):
    """The mean of two classifiers."""

    def __init__(self):
        super().__init__()
        self.body, self.a, self.b = nn.Flatten(), nn.Linear(3 * SIZE**2, 4), nn.Linear(3 * SIZE**2, 4)

    def forward(self, x):
        x = self.body(x)
        return (self.a(x) + self.b(x)) / 2


class Shared(nn.Module):
    """A network whose last layer is run twice, or is used elsewhere."""

    def __init__(self, twice):
        super().__init__()
        self.body, self.head, self.twice = nn.Flatten(), nn.Linear(3 * SIZE**2, 3 * SIZE**2), twice

    def forward(self, x):
        x = self.body(x)
        return self.head(self.head(x) if self.twice else x @ self.head.weight)


def scaled():
    """A network whose last layer's output is changed by a hook."""
    student = network(3)
    student[4].register_forward_hook(lambda layer, inputs, output: output * 3)
    return student


def frozen():
    student = network(3)
    student[4].requires_grad_(False)
    return student


def normalized():
    """A network whose last layer computes its weights before each pass."""
    student = network(3)
    nn.utils.spectral_norm(student[4])
    return student


@pytest.mark.parametrize(
    ("student", "size", "name"),
    [
        (lambda: network(3), SIZE, "4"),
        (lambda: network(3, last=nn.Identity()), SIZE, "4"),
        (lambda: network(3, last=nn.LogSoftmax(dim=1)), SIZE, None),
        (lambda: network(3, last=Doubled()), SIZE, None),
        (TwoHeads, SIZE, None),
        (lambda: Shared(True), SIZE, None),
        (lambda: Shared(False), SIZE, None),
        (scaled, SIZE, None),
        (frozen, SIZE, None),
        (normalized, SIZE, None),
        (lambda: load_model("cifar_resnet:depth=8,width=2", classes=3).module, SIZE, "linear"),
        (lambda: load_model("mobilenet_v3_small", classes=3).module, 64, "classifier.3"),
        (lambda: load_model("squeezenet1_1", classes=3).module, 64, None),
    ],
)
def test_classifier_of__is_the_linear_layer_whose_output_the_network_returns(student, size, name):
    built = student().eval()
    before = copy.deepcopy(built.state_dict())
    assert classifier_of(built, 3, size) == name
    assert all(torch.equal(value, before[key]) for key, value in built.state_dict().items())


def test_classifier_of__a_layer_with_too_many_features_is_none(monkeypatch):
    monkeypatch.setattr("dfkd.distill.init.classifier.WIDEST", 11)
    assert classifier_of(network(3), 3, SIZE) is None
