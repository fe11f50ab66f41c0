"""Similarity-preserving distillation: inner products of flattened maps, one by one."""

import numpy as np
import pytest

from dfkd.distill.losses import SP
from dfkd.system.errors import RequestError


@pytest.fixture
def pair(normal):
    """Two stages, of which the deepest counts, with other channels and resolutions."""
    return normal({"stage1": (4, 2, 4, 4), "stage2": (4, 3, 2, 2)}, {"stage1": (4, 3, 6, 6), "stage2": (4, 2, 3, 3)})


def similarities(maps, normalize):
    b = len(maps)
    g = np.array([[(maps[i] * maps[j]).sum() for j in range(b)] for i in range(b)])
    if normalize == "row":
        return np.array([row / np.sqrt((row**2).sum()) for row in g])
    return g / np.sqrt((g**2).sum())


@pytest.mark.parametrize("normalize", ["row", "frobenius"])
def test_value_and_gradient(pair, check_formula, normalize):
    student, teacher = pair
    target = similarities(teacher["stage2"], normalize)

    def formula(arrays):
        return ((target - similarities(arrays["stage2"], normalize)) ** 2).sum() / 4**2

    check_formula(SP(normalize), student, teacher, formula)


def test_the_papers_normalisation_and_weight_are_the_defaults():
    assert (SP().normalize, SP.weight) == ("row", 3000)


@pytest.mark.parametrize("normalize", ["row", "frobenius"])
def test_scale_rotation_and_order_do_not_matter(pair, outputs, check_permutation, rng, normalize):
    student, teacher = ({"stage1": side["stage2"]} for side in pair)
    loss = SP(normalize)
    once = check_permutation(loss, student, teacher)
    turn = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    turned = 5 * (student["stage1"].reshape(4, 12) @ turn).reshape(4, 3, 2, 2)
    assert loss(outputs({"stage1": turned}), outputs(teacher)).item() == pytest.approx(once)
    assert loss(outputs({"stage1": turned}), outputs(student)).item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("normalize", ["row", "frobenius"])
def test_is_finite_with_a_bounded_gradient(pair, check_survives, normalize):
    check_survives(SP(normalize), *pair, most=10)


def test_a_feature_that_is_no_map_is_refused(rng, outputs):
    flat = outputs({"stage1": rng.normal(size=(4, 3))})
    with pytest.raises(RequestError, match=r"^the feature 'stage'"):
        SP()(flat, flat)
