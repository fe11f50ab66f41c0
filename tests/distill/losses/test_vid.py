"""Variational information distillation: the Gaussian likelihood, its mean networks and its variances."""

import math

import numpy as np
import pytest
import torch

from dfkd.distill.losses import VID
from dfkd.system.errors import RequestError


@pytest.fixture
def pair(normal):
    """A stage larger on the student's side, one larger on the teacher's, and last features of other widths."""
    return normal(
        {"stage1": (3, 2, 4, 4), "stage2": (3, 3, 2, 2), "last": (3, 4)},
        {"stage1": (3, 3, 3, 3), "stage2": (3, 2, 4, 4), "last": (3, 2)},
    )


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
def test_value_and_gradients(pair, build, check_formula, maps, rng, last):
    student, teacher = pair
    loss = build(VID, student, teacher, last=last)
    assert loss.taps == (("stage", "last") if last else ("stage",))
    assert len(loss.alphas) == len(loss.means) == 2 + last
    with torch.no_grad():
        for alpha in loss.alphas:
            alpha.copy_(torch.tensor(rng.normal(size=alpha.shape) * 2))
    check_formula(loss, student, teacher, formula_of(loss, maps, teacher), own=True)


@pytest.mark.parametrize("variance", [5.0, 0.01, 800.0])
def test_variances_start_where_they_are_asked_to(pair, build, variance):
    loss = build(VID, *pair, variance=variance)
    for alpha in loss.alphas:
        assert (torch.nn.functional.softplus(alpha) + 1e-5).tolist() == pytest.approx([variance] * len(alpha))


def test_the_minimum_is_the_logarithm_of_the_deviation(rng, outputs, build):
    """At t = μ(s) only log(σ) is left, which is negative below 1; the variance may fall to epsilon and no further."""
    features = {"stage1": rng.normal(size=(4, 3, 2, 2)), "last": rng.normal(size=(4, 3))}
    loss = build(VID, features, features, last=True)
    loss.means[0] = torch.nn.Identity()
    loss.means[1] = torch.nn.Identity()
    assert loss(outputs(features), outputs(features)).item() == pytest.approx(math.log(5), rel=1e-6)  # 2 places
    with torch.no_grad():
        for alpha in loss.alphas:
            alpha.fill_(-100)
    assert loss(outputs(features), outputs(features)).item() == pytest.approx(math.log(1e-5), rel=1e-6)
    off = {k: v + 0.01 for k, v in features.items()}
    assert loss(outputs(off), outputs(features)).item() > math.log(1e-5)


def test_the_batch_may_be_permuted_and_a_last_map_is_averaged(pair, build, check_permutation, check_averages_maps):
    loss = build(VID, *pair, last=True)
    check_permutation(loss, *pair)
    check_averages_maps(loss, *pair)


def test_is_finite_where_features_are_degenerate(pair, build, check_survives):
    check_survives(build(VID, *pair, last=True), *pair)


def test_one_image_of_one_pixel_is_refused(check_refuses_one_pixel):
    check_refuses_one_pixel(VID, "stage1")


def test_bfloat16_is_close(pair, build, check_close_in_bf16):
    check_close_in_bf16(build(VID, *pair, last=True), *pair)


def test_wrong_input_is_refused(rng, outputs):
    for options in ({"variance": 0.0}, {"variance": 1e-6}, {"variance": float("inf")}, {"variance": float("nan")}):
        with pytest.raises(RequestError, match=r"^variance="):
            VID(**options)
    with pytest.raises(RequestError, match=r"^epsilon=0"):
        VID(epsilon=0.0)
    flat = outputs({"stage1": rng.normal(size=(2, 3))})
    with pytest.raises(RequestError, match=r"^the feature 'stage'"):
        VID().setup(flat, flat)
    odd = outputs({"stage1": rng.normal(size=(2, 3, 2, 2)), "last": rng.normal(size=(2, 3, 4))})
    with pytest.raises(RequestError, match=r"^the feature 'last'"):
        VID(last=True).setup(odd, odd)
