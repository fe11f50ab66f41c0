"""Similarity-preserving distillation: inner products of flattened maps, one by one."""

import numpy as np
import pytest
import torch

from dfkd.distill.losses import SP
from dfkd.errors import RequestError


@pytest.fixture
def pair(rng):
    """Two stages, of which the deepest counts, with other channels and resolutions."""
    student = {"stage1": rng.normal(size=(4, 2, 4, 4)), "stage2": rng.normal(size=(4, 3, 2, 2))}
    teacher = {"stage1": rng.normal(size=(4, 3, 6, 6)), "stage2": rng.normal(size=(4, 2, 3, 3))}
    return student, teacher


def similarities(maps, normalize):
    b = len(maps)
    g = np.array([[(maps[i] * maps[j]).sum() for j in range(b)] for i in range(b)])
    if normalize == "row":
        return np.array([row / np.sqrt((row**2).sum()) for row in g])
    return g / np.sqrt((g**2).sum())


@pytest.mark.parametrize("normalize", ["row", "frobenius"])
def test_value_and_gradient(pair, prove, normalize):
    student, teacher = pair
    target = similarities(teacher["stage2"], normalize)

    def formula(arrays):
        return ((target - similarities(arrays["stage2"], normalize)) ** 2).sum() / 4**2

    prove(SP(normalize), student, teacher, formula)


def test_the_papers_normalisation_and_weight_are_the_defaults():
    assert (SP().normalize, SP.weight) == ("row", 3000)


@pytest.mark.parametrize("normalize", ["row", "frobenius"])
def test_scale_rotation_and_order_do_not_matter(pair, outputs, rng, normalize):
    student, teacher = ({"stage1": side["stage2"]} for side in pair)
    loss = SP(normalize)
    once = loss(outputs(student), outputs(teacher)).item()
    turn = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    turned = 5 * (student["stage1"].reshape(4, 12) @ turn).reshape(4, 3, 2, 2)
    assert loss(outputs({"stage1": turned}), outputs(teacher)).item() == pytest.approx(once)
    order = [2, 3, 1, 0]
    permuted = [outputs({"stage1": side["stage1"][order]}) for side in (student, teacher)]
    assert loss(*permuted).item() == pytest.approx(once)
    assert loss(outputs({"stage1": turned}), outputs(student)).item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("normalize", ["row", "frobenius"])
@pytest.mark.parametrize("kind", ["zeros", "some zeros", "same", "one", "huge"])
def test_is_finite_with_a_bounded_gradient(normalize, kind, outputs, assert_finite, rng):
    x = rng.normal(size=(4, 3, 2, 2))
    if kind == "some zeros":
        x[1] = 0
    x = {"zeros": 0 * x, "same": x[[0] * 4], "one": x[:1], "huge": 1e6 * x}.get(kind, x)
    ours = outputs({"stage1": x}, torch.float32, grad=True)
    assert_finite(SP(normalize), ours, outputs({"stage1": rng.normal(size=x.shape)}, torch.float32))
    assert ours.features["stage1"].grad.abs().max() < 10


def test_bfloat16_is_computed_in_float32(pair, outputs, assert_finite):
    low = assert_finite(SP(), outputs(pair[0], torch.bfloat16, grad=True), outputs(pair[1], torch.bfloat16))
    rounded = [{name: torch.tensor(x).bfloat16().double().numpy() for name, x in side.items()} for side in pair]
    assert low == pytest.approx(SP()(*(outputs(side) for side in rounded)).item(), rel=1e-4)


def test_a_feature_that_is_no_map_is_refused(rng, outputs):
    flat = outputs({"stage1": rng.normal(size=(4, 3))})
    with pytest.raises(RequestError, match="sp: the feature 'stage'"):
        SP()(flat, flat)
