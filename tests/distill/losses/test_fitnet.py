import numpy as np
import pytest

from dfkd.distill.losses.fitnet import FitNet
from dfkd.system.errors import RequestError


@pytest.fixture
def pair(normal):
    """Three stages, of which the middle one differs in width and resolution."""
    student = {"stage1": (2, 3, 4, 4), "stage2": (2, 3, 4, 4), "stage3": (2, 5, 2, 2)}
    teacher = {"stage1": (2, 4, 4, 4), "stage2": (2, 4, 2, 2), "stage3": (2, 5, 2, 2)}
    return normal(student, teacher)


@pytest.mark.parametrize("activation", ["none", "relu"])
def test_the_middle_stage_through_a_regressor(pair, build, check_formula, activation):
    student, teacher = pair
    loss = build(FitNet, student, teacher, activation=activation)
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

    check_formula(loss, student, teacher, formula, own=True)


def test_a_stage_of_one_width_has_no_regressor_and_costs_nothing_at_equality(
    pair, build, outputs, check_zero_at_equality
):
    student, teacher = pair
    loss = build(FitNet, student, teacher, stage=3)
    assert not list(loss.parameters())
    check_zero_at_equality(loss, teacher, most=0)
    expected = ((student["stage3"] - teacher["stage3"]) ** 2).mean() / 2
    assert loss(outputs(student), outputs(teacher)).item() == pytest.approx(expected)
    last = build(FitNet, student, teacher, stage="last")
    assert last(outputs(student), outputs(teacher)).item() == pytest.approx(expected)


def test_of_two_stages_the_first_is_the_middle(pair, build, outputs):
    two = [{name: x for name, x in side.items() if name != "stage3"} for side in pair]
    by_name, by_number = build(FitNet, *two), build(FitNet, *two, stage=1)
    by_number.load_state_dict(by_name.state_dict())
    assert by_name(*map(outputs, two)).item() == by_number(*map(outputs, two)).item()


@pytest.mark.parametrize("stage", [0, 4, -1, "deep"])
def test_refuses_a_stage_that_there_is_not(pair, build, stage):
    with pytest.raises(RequestError, match=f"^stage={stage} is not one of the 3 stages"):
        build(FitNet, *pair, stage=stage)


def test_is_finite_where_features_are_degenerate(pair, build, check_survives):
    check_survives(build(FitNet, *pair), *pair)
