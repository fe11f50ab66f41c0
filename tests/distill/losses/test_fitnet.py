import numpy as np
import pytest
import torch

from dfkd.distill.losses.fitnet import FitNet
from dfkd.errors import RequestError


@pytest.fixture
def maps(rng):
    """Three stages, of which the middle one differs in width and resolution."""
    student = {"stage1": (2, 3, 4, 4), "stage2": (2, 3, 4, 4), "stage3": (2, 5, 2, 2)}
    teacher = {"stage1": (2, 4, 4, 4), "stage2": (2, 4, 2, 2), "stage3": (2, 5, 2, 2)}
    return tuple({name: rng.normal(size=size) for name, size in side.items()} for side in (student, teacher))


@pytest.fixture
def ready(outputs):
    def make(student, teacher, **options):
        loss = FitNet(**options)
        loss.setup(outputs(student), outputs(teacher))
        return loss.double()

    return make


@pytest.mark.parametrize("activation", ["none", "relu"])
def test_the_middle_stage_through_a_regressor(maps, ready, prove, activation):
    student, teacher = maps
    loss = ready(student, teacher, activation=activation)
    weight, bias = (x.detach().numpy() for x in (loss.regressor.weight[:, :, 0, 0], loss.regressor.bias))

    def formula(s):
        total = 0.0
        for b in range(2):
            for i in range(2):
                for j in range(2):
                    pooled = s["stage2"][b, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean(axis=(1, 2))
                    seen = weight @ pooled + bias
                    seen = np.maximum(seen, 0) if activation == "relu" else seen
                    total += ((teacher["stage2"][b, :, i, j] - seen) ** 2).sum() / 2
        return total / (2 * 4 * 2 * 2)

    prove(loss, student, teacher, formula)


def test_a_stage_of_one_width_has_no_regressor_and_costs_nothing_at_equality(maps, ready, outputs):
    student, teacher = maps
    loss = ready(student, teacher, stage=3)
    assert not list(loss.parameters())
    assert loss(outputs(teacher), outputs(teacher)).item() == 0
    expected = ((student["stage3"] - teacher["stage3"]) ** 2).mean() / 2
    assert loss(outputs(student), outputs(teacher)).item() == pytest.approx(expected)
    assert ready(student, teacher, stage="last")(outputs(student), outputs(teacher)).item() == pytest.approx(expected)


def test_the_regressor_learns(maps, ready, outputs):
    student, teacher = maps
    loss = ready(student, teacher)
    loss(outputs(student), outputs(teacher)).backward()
    bias, gradient = loss.regressor.bias, loss.regressor.bias.grad.clone()
    for channel in range(4):
        values = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                bias[channel] += shift
                values.append(loss(outputs(student), outputs(teacher)).item())
                bias[channel] -= shift
        assert gradient[channel].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_does_not_depend_on_the_batchs_order(maps, ready, outputs):
    loss = ready(*maps)
    turned = [{name: x[::-1].copy() for name, x in side.items()} for side in maps]
    assert loss(*map(outputs, turned)).item() == pytest.approx(loss(*map(outputs, maps)).item(), rel=1e-12)


def test_of_two_stages_the_first_is_the_middle(maps, ready, outputs):
    two = [{name: x for name, x in side.items() if name != "stage3"} for side in maps]
    by_name, by_number = ready(*two), ready(*two, stage=1)
    by_number.load_state_dict(by_name.state_dict())
    assert by_name(*map(outputs, two)).item() == by_number(*map(outputs, two)).item()


@pytest.mark.parametrize("stage", [0, 4, -1, "deep"])
def test_refuses_a_stage_that_there_is_not(maps, ready, stage):
    with pytest.raises(RequestError, match=f"fitnet:stage={stage} is not one of the 3 stages"):
        ready(*maps, stage=stage)


def test_bf16_is_close_to_float32(maps, outputs):
    loss = FitNet()
    loss.setup(*map(outputs, maps))
    exact, low = (loss(*(outputs(side, dtype) for side in maps)) for dtype in (torch.float32, torch.bfloat16))
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(exact.item(), rel=0.02)


@pytest.mark.parametrize("batch", [1, 3])
def test_is_finite_on_zeros(outputs, batch):
    zeros = {"stage1": np.zeros((batch, 2, 2, 2))}
    loss = FitNet()
    loss.setup(outputs(zeros), outputs(zeros))
    student = outputs(zeros, torch.float32, grad=True)
    value = loss(student, outputs(zeros, torch.float32))
    value.backward()
    assert value.item() == 0
    assert student.features["stage1"].grad.abs().max() == 0
