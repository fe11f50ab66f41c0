import numpy as np
import pytest
import torch

from dfkd.distill.losses.at import AT
from dfkd.errors import RequestError


@pytest.fixture
def maps(rng):
    student = {"stage1": (2, 3, 4, 4), "stage2": (2, 2, 2, 3)}
    teacher = {"stage1": (2, 5, 2, 2), "stage2": (2, 4, 2, 3)}
    return tuple({name: rng.normal(size=size) for name, size in side.items()} for side in (student, teacher))


def attention(feature, p, pooled):
    """The normalised attention map of one image, flattened."""
    q = sum(np.abs(channel) ** p for channel in feature)
    if pooled:
        q = np.array([[q[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for j in range(2)] for i in range(2)])
    return q.ravel() / np.sqrt((q**2).sum())


@pytest.mark.parametrize(("options", "p", "power"), [({}, 2, 1), ({"squared": True}, 2, 2), ({"p": 3.0}, 3, 1)])
def test_distance_of_attention_maps(maps, prove, options, p, power):
    student, teacher = maps

    def formula(s):
        total = 0.0
        for name, pixels in (("stage1", 4), ("stage2", 6)):
            for b in range(2):
                ours = attention(s[name][b], p, name == "stage1")
                theirs = attention(teacher[name][b], p, False)
                total += np.linalg.norm(ours - theirs) ** power / pixels / 2
        return total

    prove(AT(**options), student, teacher, formula)


@pytest.mark.parametrize("squared", [False, True])
def test_is_zero_at_equality_with_gradient_zero(maps, outputs, squared):
    student = outputs(maps[0], grad=True)
    value = AT(squared=squared)(student, outputs(maps[0]))
    value.backward()
    assert value.item() == 0
    assert all(x.grad.abs().max() == 0 for x in student.features.values())


def test_neither_scale_nor_the_channels_order_matters(maps, outputs):
    student, teacher = maps
    once = AT()(outputs(student), outputs(teacher)).item()
    moved = {name: 7 * x[:, ::-1].copy() for name, x in student.items()}
    assert AT()(outputs(moved), outputs(teacher)).item() == pytest.approx(once, rel=1e-9)
    turned = [{name: x[::-1].copy() for name, x in side.items()} for side in maps]
    assert AT()(*map(outputs, turned)).item() == pytest.approx(once, rel=1e-9)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_is_finite_on_constants(outputs, maps, batch, fill):
    student = outputs({"stage1": np.full((batch, 2, 2, 2), fill)}, torch.float32, grad=True)
    teacher = outputs({"stage1": np.arange(batch * 8.0).reshape(batch, 2, 2, 2)}, torch.float32)
    for side in (student, teacher):
        value = AT()(side, student)
        value.backward()
        assert value.isfinite()
    assert student.features["stage1"].grad.isfinite().all()
    assert student.features["stage1"].grad.abs().max() < 10


def test_bf16_is_close_to_float32(maps, outputs):
    exact, low = (AT()(*(outputs(side, dtype) for side in maps)) for dtype in (torch.float32, torch.bfloat16))
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(exact.item(), rel=0.02)


@pytest.mark.parametrize("p", [0.5, float("nan"), float("inf")])
def test_refuses_a_power(p):
    with pytest.raises(RequestError, match=f"at:p={p:g}"):
        AT(p)


def test_refuses_vectors(outputs):
    vectors = outputs({"stage1": np.zeros((2, 3))})
    with pytest.raises(RequestError, match="'stage' has shape"):
        AT()(vectors, vectors)
