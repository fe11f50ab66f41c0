import numpy as np
import pytest

from dfkd.distill.losses.fsp import FSP
from dfkd.system.errors import RequestError


@pytest.fixture
def pair(normal):
    """Widths and resolutions differ between the networks in the first stage; in the second, between its ends."""
    student = {"begin1": (2, 3, 2, 4), "stage1": (2, 2, 2, 4), "begin2": (2, 3, 4, 4), "stage2": (2, 2, 2, 2)}
    teacher = {"begin1": (2, 4, 3, 3), "stage1": (2, 5, 3, 3), "begin2": (2, 3, 2, 2), "stage2": (2, 2, 2, 2)}
    return normal(student, teacher)


def matrix(first, last):
    """Of one image: entry i, j is the mean over the pixels of channel i times channel j."""
    g = np.zeros((len(first), len(last)))
    for i in range(len(first)):
        for j in range(len(last)):
            g[i, j] = sum(a * b for a, b in zip(first[i].ravel(), last[j].ravel(), strict=True)) / first[i].size
    return g


def seen(layer, image):
    return np.einsum("oc,chw->ohw", layer.weight.detach().numpy()[:, :, 0, 0], image)


def test_matrices_of_every_stage(pair, build, check_formula):
    student, teacher = pair
    loss = build(FSP, student, teacher)
    assert {name for name, _ in loss.named_parameters()} == {"first.0.weight", "last.0.weight"}  # of differing widths

    def formula(s):
        total = 0.0
        for b in range(2):
            ours = matrix(seen(loss.first[0], s["begin1"][b]), seen(loss.last[0], s["stage1"][b]))
            total += ((ours - matrix(teacher["begin1"][b], teacher["stage1"][b])) ** 2).sum() / 2
            pooled = s["begin2"][b].reshape(3, 2, 2, 2, 2).max(axis=(2, 4))
            ours = matrix(pooled, s["stage2"][b])
            total += ((ours - matrix(teacher["begin2"][b], teacher["stage2"][b])) ** 2).sum() / 2
        return total

    check_formula(loss, student, teacher, formula, own=True)


def test_zero_at_equality_and_the_pixels_have_no_order(pair, build, outputs, check_zero_at_equality):
    student, teacher = pair
    check_zero_at_equality(build(FSP, teacher, teacher), teacher, most=0)
    loss = build(FSP, student, teacher)
    once = loss(outputs(student), outputs(teacher)).item()
    mirrored = {name: x[..., ::-1].copy() for name, x in student.items()}
    assert loss(outputs(mirrored), outputs(teacher)).item() == pytest.approx(once, rel=1e-9)


def test_is_finite_where_features_are_degenerate(pair, build, check_survives):
    check_survives(build(FSP, *pair), *pair)


def test_refuses_ends_without_beginnings(pair, build):
    fewer = [{name: x for name, x in side.items() if name != "begin2"} for side in pair]
    with pytest.raises(RequestError, match="1 maps that begin a stage and 2 that end one"):
        build(FSP, *fewer)
