"""Probabilistic knowledge transfer: conditional probabilities over the batch, one by one."""

import numpy as np
import pytest
import torch

from dfkd.distill.losses import PKT
from dfkd.system.errors import RequestError


@pytest.fixture
def pair(rng):
    return {"last": rng.normal(size=(5, 4))}, {"last": rng.normal(size=(5, 3))}


def conditional(x, i, others):
    kernel = {j: (x[i] @ x[j] / np.sqrt((x[i] @ x[i]) * (x[j] @ x[j])) + 1) / 2 for j in others}
    return {j: kernel[j] / sum(kernel.values()) for j in others}


def formula_of(teacher, diagonal):
    def formula(student):
        total, n = 0.0, len(teacher["last"])
        for i in range(n):
            others = [j for j in range(n) if diagonal or j != i]
            p, q = (conditional(side["last"], i, others) for side in (teacher, student))
            total += sum(p[j] * np.log(p[j] / q[j]) for j in others)
        return total / n

    return formula


@pytest.mark.parametrize("diagonal", [False, True])
def test_value_and_gradient(pair, check_formula, diagonal):
    student, teacher = pair
    check_formula(PKT(diagonal), student, teacher, formula_of(teacher, diagonal))


def test_the_weight_is_public_codes_in_batches_of_64(rng, outputs):
    """Which gives 30,000 to the mean over all entries of the 64 x 64 array, the diagonal in it."""
    student, teacher = ({"last": rng.normal(size=(64, 8))} for _ in range(2))
    entries = []
    for i in range(64):
        p, q = (conditional(side["last"], i, range(64)) for side in (teacher, student))
        entries += [p[j] * np.log(p[j] / q[j]) for j in range(64)]
    found = PKT.weight * PKT(diagonal=True)(outputs(student), outputs(teacher)).item()
    assert found == pytest.approx(30_000 * np.mean(entries), rel=1e-5)


@pytest.mark.parametrize("diagonal", [False, True])
def test_scale_rotation_and_order_do_not_matter(pair, outputs, check_permutation, rng, diagonal):
    student, teacher = pair
    loss = PKT(diagonal)
    once = check_permutation(loss, student, teacher)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    turned = {"last": 5 * student["last"] @ turn}
    assert loss(outputs(turned), outputs(teacher)).item() == pytest.approx(once)
    assert loss(outputs(turned), outputs(student)).item() == pytest.approx(0, abs=1e-12)
    assert loss(outputs(teacher), outputs(student)).item() != pytest.approx(once)  # a divergence has a direction


def test_features_that_are_nearly_the_teachers_are_told_apart_in_float32(rng, outputs):
    teacher = rng.normal(size=(8, 6)) + 3
    student = teacher + 1e-3 * rng.normal(size=(8, 6))
    exact, single = (
        PKT()(outputs({"last": student}, dtype), outputs({"last": teacher}, dtype)).item()
        for dtype in (torch.float64, torch.float32)
    )
    assert 0 < exact < 1e-6
    assert single == pytest.approx(exact, rel=1e-2)


def test_a_map_is_averaged(pair, check_averages_maps):
    check_averages_maps(PKT(), *pair)


@pytest.mark.parametrize("diagonal", [False, True])
def test_is_finite_with_a_bounded_gradient(pair, check_survives, diagonal):
    check_survives(PKT(diagonal), *pair, most=1e4)


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("kind", ["opposite", "one", "two"])
def test_is_finite_in_small_batches_and_between_opposites(diagonal, kind, outputs, check_finite, rng):
    x = rng.normal(size=(4, 6))
    x = {"opposite": np.concatenate([x[:1], -x[[0] * 3]]), "one": x[:1], "two": x[:2]}[kind]
    ours = outputs({"last": x}, torch.float32, grad=True)
    value = check_finite(PKT(diagonal), ours, outputs({"last": rng.normal(size=x.shape)}, torch.float32), most=1e4)
    if kind == "one" or (kind == "two" and not diagonal):
        assert value == pytest.approx(0, abs=1e-6)


def test_a_feature_of_another_shape_is_refused(rng, outputs):
    odd = outputs({"last": rng.normal(size=(2, 3, 4))})
    with pytest.raises(RequestError, match=r"^the feature 'last'"):
        PKT()(odd, odd)
