"""Variational information distillation: the Gaussian likelihood, its mean networks and its variances."""

import math

import numpy as np
import pytest
import torch

from dfkd.distill.losses import VID
from dfkd.errors import RequestError


@pytest.fixture
def pair(rng):
    """A stage larger on the student's side, one larger on the teacher's, and last features of other widths."""
    student = {
        "stage1": rng.normal(size=(3, 2, 4, 4)),
        "stage2": rng.normal(size=(3, 3, 2, 2)),
        "last": rng.normal(size=(3, 4)),
    }
    teacher = {
        "stage1": rng.normal(size=(3, 3, 3, 3)),
        "stage2": rng.normal(size=(3, 2, 4, 4)),
        "last": rng.normal(size=(3, 2)),
    }
    return student, teacher


def built(outputs, student, teacher, **options):
    loss = VID(**options)
    loss.setup(outputs(student), outputs(teacher))
    return loss.double()


def formula_of(loss, maps, teacher, epsilon=1e-5):
    def likelihood(mean, t, alpha):
        total = 0.0
        for i in np.ndindex(t.shape):
            sigma = math.sqrt(math.log(1 + math.exp(alpha[i[1]])) + epsilon)
            total += math.log(sigma) + (t[i] - mean[i]) ** 2 / (2 * sigma**2)
        return total / t.size

    def formula(student):
        own = {name: value.numpy() for name, value in loss.state_dict().items()}
        total = 0.0
        for place, size in enumerate([(3, 3), (2, 2)]):
            x, net = maps.pool(student[f"stage{place + 1}"], *size), f"means.{place}"
            for layer in (0, 3):
                x = maps.conv(x, own[f"{net}.{layer}.weight"])
                x = maps.norm(x, own[f"{net}.{layer + 1}.weight"], own[f"{net}.{layer + 1}.bias"])
                x = np.maximum(x, 0)
            x = maps.conv(x, own[f"{net}.6.weight"])
            total += likelihood(x, maps.pool(teacher[f"stage{place + 1}"], *size), own[f"alphas.{place}"])
        if "last" in loss.taps:
            mean = student["last"] @ own["means.2.weight"].T + own["means.2.bias"]
            total += likelihood(mean, teacher["last"], own["alphas.2"])
        return total

    return formula


@pytest.mark.parametrize("last", [False, True])
def test_value_and_gradients(pair, outputs, prove, prove_own, maps, rng, last):
    student, teacher = pair
    loss = built(outputs, student, teacher, last=last)
    assert loss.taps == (("stage", "last") if last else ("stage",))
    assert len(loss.alphas) == len(loss.means) == 2 + last
    with torch.no_grad():
        for alpha in loss.alphas:
            alpha.copy_(torch.tensor(rng.normal(size=alpha.shape) * 2))
    formula = formula_of(loss, maps, teacher)
    prove(loss, student, teacher, formula)
    loss.zero_grad()
    prove_own(loss, student, teacher, formula)


@pytest.mark.parametrize("variance", [5.0, 0.01, 800.0])
def test_variances_start_where_they_are_asked_to(pair, outputs, variance):
    loss = built(outputs, *pair, variance=variance)
    for alpha in loss.alphas:
        assert (torch.nn.functional.softplus(alpha) + 1e-5).tolist() == pytest.approx([variance] * len(alpha))


def test_the_minimum_is_the_logarithm_of_the_deviation(rng, outputs):
    """At t = μ(s) only log(σ) is left, which is negative below 1; the variance may fall to epsilon and no further."""
    features = {"stage1": rng.normal(size=(4, 3, 2, 2)), "last": rng.normal(size=(4, 3))}
    loss = built(outputs, features, features, last=True)
    loss.means[0] = torch.nn.Identity()
    loss.means[1] = torch.nn.Identity()
    assert loss(outputs(features), outputs(features)).item() == pytest.approx(math.log(5), rel=1e-6)  # 2 places
    with torch.no_grad():
        for alpha in loss.alphas:
            alpha.fill_(-100)
    assert loss(outputs(features), outputs(features)).item() == pytest.approx(math.log(1e-5), rel=1e-6)
    off = {k: v + 0.01 for k, v in features.items()}
    assert loss(outputs(off), outputs(features)).item() > math.log(1e-5)


def test_the_batch_may_be_permuted_and_a_last_map_is_averaged(pair, outputs, rng):
    student, teacher = pair
    student = {**student, "last": rng.normal(size=(3, 4, 2, 2))}
    loss = built(outputs, student, teacher, last=True)
    once = loss(outputs(student), outputs(teacher)).item()
    order = [2, 0, 1]
    turned = [outputs({k: v[order] for k, v in side.items()}) for side in (student, teacher)]
    assert loss(*turned).item() == pytest.approx(once)
    flat = {**student, "last": student["last"].mean(axis=(2, 3))}
    assert loss(outputs(flat), outputs(teacher)).item() == pytest.approx(once)


def test_is_finite_where_features_are_degenerate(pair, outputs, assert_finite, degenerate):
    student, teacher = pair
    loss = built(outputs, student, teacher, last=True)
    student, teacher = (degenerate(side) for side in pair)
    assert_finite(loss, outputs(student, grad=True), outputs(teacher))


def test_one_image_of_one_pixel_is_refused(rng, outputs):
    features = {"stage1": rng.normal(size=(2, 2, 1, 1))}
    loss = built(outputs, features, features)
    one = outputs({"stage1": features["stage1"][:1]})
    with pytest.raises(RequestError, match="--batch-size 2"):
        loss(one, one)


def test_bfloat16_is_close(pair, outputs, assert_finite):
    student, teacher = pair
    loss = built(outputs, student, teacher, last=True).float()
    exact = loss(*(outputs(side, torch.float32) for side in pair)).item()
    low = assert_finite(loss, outputs(student, torch.bfloat16, grad=True), outputs(teacher, torch.bfloat16))
    assert low == pytest.approx(exact, rel=0.02)


def test_wrong_input_is_refused(rng, outputs):
    for options in ({"variance": 0.0}, {"variance": 1e-6}, {"variance": float("inf")}, {"variance": float("nan")}):
        with pytest.raises(RequestError, match="vid:variance="):
            VID(**options)
    with pytest.raises(RequestError, match="vid:epsilon=0"):
        VID(epsilon=0.0)
    flat = outputs({"stage1": rng.normal(size=(2, 3))})
    with pytest.raises(RequestError, match="vid: the feature 'stage'"):
        VID().setup(flat, flat)
    odd = outputs({"stage1": rng.normal(size=(2, 3, 2, 2)), "last": rng.normal(size=(2, 3, 4))})
    with pytest.raises(RequestError, match="vid: the feature 'last'"):
        VID(last=True).setup(odd, odd)
