import numpy as np
import pytest
import torch

from dfkd.distill.losses import KD, Standardized
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_standardized(logits, check_formula, temperature):
    student, teacher = logits

    def distribution(x):
        mean = sum(x) / len(x)
        deviation = np.sqrt(sum((value - mean) ** 2 for value in x) / len(x))
        e = [np.exp((value - mean) / deviation / temperature) for value in x]
        return [value / sum(e) for value in e]

    def formula(arrays):
        total = 0.0
        for s, t in zip(arrays["logits"], teacher, strict=True):
            total += sum(p * np.log(p / q) for p, q in zip(distribution(t), distribution(s), strict=True))
        return temperature**2 * total / len(teacher)

    check_formula(Standardized(temperature), {"logits": student}, {"logits": teacher}, formula)


def test_scale_and_shift_of_every_image_do_not_matter(logits, rng):
    student, teacher = (torch.tensor(x) for x in logits)
    once = Standardized()(Outputs(student), Outputs(teacher))
    scales, shifts = (torch.tensor(rng.random((2, 6, 1)) + 0.1) for _ in range(2))
    moved = Outputs(scales[0] * student + shifts[0]), Outputs(scales[1] * teacher - 100 * shifts[1])
    assert Standardized()(*moved).item() == pytest.approx(once.item())


def test_it_is_zero_where_the_student_is_a_scaled_teacher(logits):
    x = torch.tensor(logits[0])
    assert Standardized()(Outputs(0.1 * x + 3), Outputs(x)).item() == pytest.approx(0, abs=1e-12)


def test_below_epsilon_it_is_kd_of_logits_divided_by_it(logits):
    ours, theirs = (0.01 * torch.tensor(x) for x in logits)
    found = Standardized(2.0, epsilon=0.5)(Outputs(ours), Outputs(theirs))
    assert found.item() == pytest.approx(KD(2.0)(Outputs(ours / 0.5), Outputs(theirs / 0.5)).item())


def test_it_is_finite_with_its_gradient(extreme, check_finite):
    check_finite(Standardized(), *extreme)


def test_a_student_with_equal_logits_gets_a_bounded_gradient(logits, check_finite):
    equal = torch.zeros(6, 5, requires_grad=True)
    check_finite(Standardized(), Outputs(equal), Outputs(torch.tensor(logits[1]).float()), most=1000)
    assert equal.grad.any()


def test_one_class_costs_nothing(check_finite):
    check_finite(Standardized(), Outputs(torch.ones(3, 1, requires_grad=True)), Outputs(torch.zeros(3, 1)))


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"epsilon": 0.0}])
def test_it_refuses(options):
    with pytest.raises(RequestError, match=f"^{next(iter(options))}=0 is not above 0"):
        Standardized(**options)
