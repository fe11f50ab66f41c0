import numpy as np
import pytest
import torch

from dfkd.distill.losses.cwd import CWD
from dfkd.system.errors import RequestError


@pytest.fixture
def pair(normal):
    student = {"stage1": (2, 3, 2, 3), "stage2": (2, 3, 4, 4)}
    teacher = {"stage1": (2, 3, 2, 3), "stage2": (2, 4, 2, 2)}
    return tuple({name: 3 * x for name, x in side.items()} for side in normal(student, teacher))


def divergence(ours, theirs, temperature):
    """T^2 / C times the sum over channels, averaged over the batch; maps [batch, channels, pixels]."""
    total = 0.0
    for b in range(ours.shape[0]):
        for c in range(ours.shape[1]):
            p, q = (np.exp(x[b, c] / temperature) for x in (theirs, ours))
            p, q = p / p.sum(), q / q.sum()
            total += sum(p[i] * np.log(p[i] / q[i]) for i in range(len(p)))
    return temperature**2 * total / ours.shape[1] / ours.shape[0]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_stage_of_one_shape(pair, build, check_formula, temperature):
    student, teacher = pair

    def formula(s):
        return divergence(s["stage1"].reshape(2, 3, 6), teacher["stage1"].reshape(2, 3, 6), temperature)

    check_formula(build(CWD, student, teacher, stage=1, temperature=temperature), student, teacher, formula)


def test_the_last_stage_projected_and_pooled(pair, build, check_formula):
    student, teacher = pair
    loss = build(CWD, student, teacher)
    weight = loss.projection.weight.detach().numpy()[:, :, 0, 0]

    def formula(s):
        pooled = s["stage2"].reshape(2, 3, 2, 2, 2, 2).mean(axis=(3, 5)).reshape(2, 3, 4)
        seen = np.stack([weight @ image for image in pooled])
        return divergence(seen, teacher["stage2"].reshape(2, 4, 4), 4.0)

    check_formula(loss, student, teacher, formula, own=True)


def test_zero_at_equality_and_no_constant_of_a_channel_matters(
    pair, build, outputs, check_permutation, check_zero_at_equality
):
    student, teacher = pair
    loss = build(CWD, student, teacher, stage=1)
    check_zero_at_equality(loss, teacher)
    shifted = {**student, "stage1": student["stage1"] + np.arange(3)[:, None, None]}
    once = check_permutation(loss, student, teacher)
    assert loss(outputs(shifted), outputs(teacher)).item() == pytest.approx(once, rel=1e-9)


def test_is_finite_where_features_are_degenerate(pair, build, check_survives):
    check_survives(build(CWD, *pair), *pair)


@pytest.mark.parametrize("case", ["far", "pixel"])
def test_is_finite_on_far_pixels_and_on_one(outputs, check_finite, case):
    x = {"far": np.array([[[[0.0, 2000], [-2000, 0]]]]), "pixel": np.ones((2, 3, 1, 1))}[case]
    student, teacher = outputs({"stage1": -x}, torch.float32, grad=True), outputs({"stage1": x}, torch.float32)
    loss = CWD()
    loss.setup(student, teacher)
    assert (check_finite(loss, student, teacher) > 1000) == (case == "far")


def test_refuses(pair, build):
    with pytest.raises(RequestError, match=r"^temperature=0"):
        CWD(0.0)
    with pytest.raises(RequestError, match=r"^stage=3 is not one of the 2 stages"):
        build(CWD, *pair, stage=3)
