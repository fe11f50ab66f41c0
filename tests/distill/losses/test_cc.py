"""Correlation congruence: kernels of every two samples."""

import math

import numpy as np
import pytest

from dfkd.distill.losses import CC
from dfkd.system.errors import RequestError


@pytest.fixture
def pair(rng):
    return {"last": rng.normal(size=(5, 4))}, {"last": rng.normal(size=(5, 3))}


def congruence(teacher, kernel):
    def matrix(x):
        x = [row / np.sqrt((row**2).sum()) for row in x]
        return np.array([[kernel(a, b) for b in x] for a in x])

    return lambda student: ((matrix(student["last"]) - matrix(teacher["last"])) ** 2).sum() / len(teacher["last"]) ** 2


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (0.4, 1), (1.5, 5)])
def test_the_gaussian_kernels_expansion(pair, check_formula, gamma, order):
    student, teacher = pair

    def kernel(a, b):
        terms = [(2 * gamma) ** p / math.factorial(p) * (a @ b) ** p for p in range(order + 1)]
        return math.exp(-2 * gamma) * sum(terms)

    check_formula(CC(gamma=gamma, order=order), student, teacher, congruence(teacher, kernel))


def test_the_expansion_tends_to_the_gaussian_kernel(pair, check_formula):
    student, teacher = pair
    formula = congruence(teacher, lambda a, b: math.exp(-0.4 * ((a - b) ** 2).sum()))
    check_formula(CC(order=20), student, teacher, formula)


def test_the_bilinear_kernel(pair, check_formula):
    student, teacher = pair
    check_formula(CC("bilinear"), student, teacher, congruence(teacher, lambda a, b: a @ b))


def test_the_papers_kernel_is_the_default():
    assert (CC().kernel, CC().gamma, CC().order) == ("gaussian", 0.4, 2)


@pytest.mark.parametrize("kernel", ["gaussian", "bilinear"])
def test_scale_rotation_and_order_do_not_matter(pair, outputs, check_permutation, rng, kernel):
    student, teacher = pair
    once = check_permutation(CC(kernel), student, teacher)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    turned = {"last": 5 * student["last"] @ turn}
    assert CC(kernel)(outputs(turned), outputs(teacher)).item() == pytest.approx(once)
    assert CC(kernel)(outputs(turned), outputs(student)).item() == pytest.approx(0, abs=1e-20)


def test_a_map_is_averaged(pair, check_averages_maps):
    check_averages_maps(CC(), *pair)


@pytest.mark.parametrize("kernel", ["gaussian", "bilinear"])
def test_is_finite_with_a_bounded_gradient(pair, check_survives, kernel):
    check_survives(CC(kernel), *pair, most=10)


def test_wrong_options_and_features_are_refused(rng, outputs):
    with pytest.raises(RequestError, match=r"^gamma=0 is not"):
        CC(gamma=0.0)
    with pytest.raises(RequestError, match=r"^order=0 is not"):
        CC(order=0)
    odd = outputs({"last": rng.normal(size=(2, 3, 4))})
    with pytest.raises(RequestError, match=r"^the feature 'last'"):
        CC()(odd, odd)
