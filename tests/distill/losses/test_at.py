import numpy as np
import pytest

from dfkd.distill.losses.at import AT
from dfkd.system.errors import RequestError


@pytest.fixture
def pair(normal):
    return normal({"stage1": (2, 3, 4, 4), "stage2": (2, 2, 2, 3)}, {"stage1": (2, 5, 2, 2), "stage2": (2, 4, 2, 3)})


def attention(feature, p, pooled):
    """The normalised attention map of one image, flattened."""
    q = sum(np.abs(channel) ** p for channel in feature)
    if pooled:
        q = np.array([[q[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for j in range(2)] for i in range(2)])
    return q.ravel() / np.sqrt((q**2).sum())


@pytest.mark.parametrize(("options", "p", "power"), [({}, 2, 1), ({"squared": True}, 2, 2), ({"p": 3.0}, 3, 1)])
def test_distance_of_attention_maps(pair, check_formula, options, p, power):
    student, teacher = pair

    def formula(s):
        total = 0.0
        for name, pixels in (("stage1", 4), ("stage2", 6)):
            for b in range(2):
                ours = attention(s[name][b], p, name == "stage1")
                theirs = attention(teacher[name][b], p, False)
                total += np.linalg.norm(ours - theirs) ** power / pixels / 2
        return total

    check_formula(AT(**options), student, teacher, formula)


@pytest.mark.parametrize("squared", [False, True])
def test_is_zero_at_equality_with_gradient_zero(pair, check_zero_at_equality, squared):
    check_zero_at_equality(AT(squared=squared), pair[0], most=0)


def test_neither_scale_nor_the_channels_order_matters(pair, outputs):
    student, teacher = pair
    once = AT()(outputs(student), outputs(teacher)).item()
    moved = {name: 7 * x[:, ::-1].copy() for name, x in student.items()}
    assert AT()(outputs(moved), outputs(teacher)).item() == pytest.approx(once, rel=1e-9)


def test_is_finite_with_a_bounded_gradient(pair, check_survives):
    check_survives(AT(), *pair, most=10)


@pytest.mark.parametrize("p", [0.5, float("nan"), float("inf")])
def test_refuses_a_power(p):
    with pytest.raises(RequestError, match=f"^p={p:g}"):
        AT(p)


def test_refuses_vectors(outputs):
    vectors = outputs({"stage1": np.zeros((2, 3))})
    with pytest.raises(RequestError, match="'stage' has shape"):
        AT()(vectors, vectors)
