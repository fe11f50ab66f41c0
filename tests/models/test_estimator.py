"""Classifiers of scikit-learn as tensors: they answer as it does, and learn distributions."""

import numpy as np
import pytest
import torch

from dfkd.config.stages.shared import Input
from dfkd.models import sklearn
from dfkd.models.architectures.estimator import expanded
from dfkd.models.load import load_model
from dfkd.system.errors import RequestError

SIDE = 4


def lessons(rng, classes=3, images=200):
    """Images of steps between few values, and distributions that depend on them."""
    x = rng.integers(0, 9, size=(images, SIDE * SIDE)).astype(np.float32) / 8
    logits = x @ rng.normal(size=(SIDE * SIDE, classes))
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return x, odds / odds.sum(axis=1, keepdims=True)


def small(**options):
    return sklearn(**{"rounds": 5, "leaves": 8, "image_size": SIDE, "num_classes": 3, "in_channels": 1, **options})


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", ["boosting", "logistic"])
def test_estimator__answers_as_scikit_learn(rng, kind, classes, monkeypatch):
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression

    target = HistGradientBoostingClassifier if kind == "boosting" else LogisticRegression
    fitted, fit = [], target.fit
    monkeypatch.setattr(target, "fit", lambda self, *given: fitted.append(self) or fit(self, *given))
    x, p = lessons(rng, classes)
    network = small(kind=kind, num_classes=classes)
    network.fit(x, p, seed=0)
    new = lessons(rng, classes)[0]
    found = network(torch.from_numpy(new).unflatten(1, (1, SIDE, SIDE))).softmax(dim=1)
    np.testing.assert_allclose(found.numpy(), fitted[0].predict_proba(new), atol=1e-5)


def test_logistic__minimizes_the_cross_entropy_with_the_distributions(rng):
    """At the minimum the gradient of the soft cross-entropy is that of the regularization."""
    x, p = lessons(rng)
    network = small(kind="logistic", strength=2.0)
    network.fit(x, p, seed=0)
    linear = network.regression.requires_grad_(True)
    rows, classes, weights = expanded(p)
    target = np.zeros_like(p)
    target[rows, classes] = weights
    np.testing.assert_allclose(target, np.where(p < 0.01, 0, p), atol=0.05)
    logs = linear(torch.from_numpy(x)).log_softmax(dim=1)
    loss = -(torch.from_numpy(target).float() * logs).sum() + linear.weight.square().sum() / (2 * 2.0)
    loss.backward()
    assert linear.weight.grad.abs().max() < 0.1 and linear.bias.grad.abs().max() < 0.1
    assert linear.weight.abs().max() > 0.5


def test_estimator__gives_a_class_that_no_target_has_no_chance(rng):
    x, p = lessons(rng)
    p = np.insert(p, 1, 0.0, axis=1)
    for kind in ("boosting", "logistic"):
        network = small(kind=kind, num_classes=4)
        network.fit(x, p, seed=0)
        assert network(torch.from_numpy(x).unflatten(1, (1, SIDE, SIDE))).softmax(dim=1)[:, 1].max() < 1e-3


def test_estimator__of_one_class_is_refused(rng):
    x, _ = lessons(rng)
    with pytest.raises(ValueError, match="the same class"):
        small().fit(x, np.eye(3)[np.zeros(len(x), dtype=int)], seed=0)


def test_model__is_built_for_the_teachers_images_and_loads_arrays_alone(rng, tmp_path):
    from safetensors.torch import save_file

    x, p = lessons(rng)
    network = small()
    network.fit(x, p, seed=0)
    save_file(network.state_dict(), tmp_path / "trees.safetensors")
    text = f"sklearn:rounds=5,leaves=8@{tmp_path / 'trees.safetensors'}"
    model = load_model(text, Input(image_size=SIDE), classes=3, channels=1)
    images = torch.from_numpy(x).unflatten(1, (1, SIDE, SIDE))
    assert torch.equal(model.module(images), network(images))
    assert model.parameter_count() == 2 * 15 * 15 + 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("rounds=0", "rounds=0 is too small"),
        ("leaves=1", "leaves=1 is too small"),
        ("rate=0", "rate=0"),
        ("kind=svm", "kind=svm"),
    ],
)
def test_sklearn__refuses_numbers_out_of_range(options, said):
    with pytest.raises(RequestError, match=said):
        load_model(f"sklearn:{options}")


def test_estimator__is_traced_for_batches_of_any_size():
    network = small().eval()
    images = torch.randn(3, 1, SIDE, SIDE)
    program = torch.export.export(network, (images,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    assert program.module()(images[:2]).shape == (2, 3)
