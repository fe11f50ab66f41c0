import numpy as np
import pytest
import torch

from dfkd.distill.losses.cwd import CWD
from dfkd.errors import RequestError


@pytest.fixture
def maps(rng):
    student = {"stage1": (2, 3, 2, 3), "stage2": (2, 3, 4, 4)}
    teacher = {"stage1": (2, 3, 2, 3), "stage2": (2, 4, 2, 2)}
    return tuple({name: 3 * rng.normal(size=size) for name, size in side.items()} for side in (student, teacher))


@pytest.fixture
def ready(outputs):
    def make(student, teacher, **options):
        loss = CWD(**options)
        loss.setup(outputs(student), outputs(teacher))
        return loss.double()

    return make


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
def test_a_stage_of_one_shape(maps, ready, prove, temperature):
    student, teacher = maps

    def formula(s):
        return divergence(s["stage1"].reshape(2, 3, 6), teacher["stage1"].reshape(2, 3, 6), temperature)

    prove(ready(student, teacher, stage=1, temperature=temperature), student, teacher, formula)


def test_the_last_stage_projected_and_pooled(maps, ready, prove):
    student, teacher = maps
    loss = ready(student, teacher)
    weight = loss.projection.weight.detach().numpy()[:, :, 0, 0]

    def formula(s):
        pooled = s["stage2"].reshape(2, 3, 2, 2, 2, 2).mean(axis=(3, 5)).reshape(2, 3, 4)
        seen = np.stack([weight @ image for image in pooled])
        return divergence(seen, teacher["stage2"].reshape(2, 4, 4), 4.0)

    prove(loss, student, teacher, formula)


def test_the_projection_learns(maps, ready, outputs):
    loss = ready(*maps)
    loss(*map(outputs, maps)).backward()
    weight, gradient = loss.projection.weight, loss.projection.weight.grad
    values = []
    for shift in (1e-5, -1e-5):
        with torch.no_grad():
            weight[1, 2] += shift
            values.append(loss(*map(outputs, maps)).item())
            weight[1, 2] -= shift
    assert gradient[1, 2].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_zero_at_equality_and_no_constant_of_a_channel_matters(maps, ready, outputs):
    student, teacher = maps
    loss = ready(student, teacher, stage=1)
    assert loss(outputs(teacher), outputs(teacher)).item() == pytest.approx(0, abs=1e-12)
    shifted = {**student, "stage1": student["stage1"] + np.arange(3)[:, None, None]}
    once = loss(outputs(student), outputs(teacher)).item()
    assert loss(outputs(shifted), outputs(teacher)).item() == pytest.approx(once, rel=1e-9)
    turned = [{name: x[::-1].copy() for name, x in side.items()} for side in maps]
    assert loss(*map(outputs, turned)).item() == pytest.approx(once, rel=1e-9)


@pytest.mark.parametrize("case", ["zeros", "one", "far", "pixel"])
def test_is_finite(outputs, case):
    x = {
        "zeros": np.zeros((3, 2, 2, 2)),
        "one": np.ones((1, 2, 2, 2)),
        "far": np.array([[[[0.0, 2000], [-2000, 0]]]]),
        "pixel": np.ones((2, 3, 1, 1)),
    }[case]
    student = outputs({"stage1": -x}, torch.float32, grad=True)
    loss = CWD()
    loss.setup(student, outputs({"stage1": x}))
    value = loss(student, outputs({"stage1": x}, torch.float32))
    value.backward()
    assert value.isfinite()
    assert (value > 1000) == (case == "far")
    assert student.features["stage1"].grad.isfinite().all()


def test_bf16_is_close_to_float32(maps, outputs):
    loss = CWD()
    loss.setup(*map(outputs, maps))
    exact, low = (loss(*(outputs(side, dtype) for side in maps)) for dtype in (torch.float32, torch.bfloat16))
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(exact.item(), rel=0.02)


def test_refuses(maps, ready):
    with pytest.raises(RequestError, match="cwd:temperature=0"):
        CWD(0.0)
    with pytest.raises(RequestError, match="cwd:stage=3 is not one of the 2 stages"):
        ready(*maps, stage=3)
