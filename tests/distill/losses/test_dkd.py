import numpy as np
import pytest
import torch

from dfkd.distill.losses import DKD, KD
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError


def parts(student, teacher, temperature):
    """The two divergences of one image, from probabilities, by the paper's definitions."""

    def probabilities(x):
        e = [np.exp(value / temperature) for value in x]
        return [value / sum(e) for value in e]

    p, q = probabilities(teacher), probabilities(student)
    k = int(np.argmax(teacher))
    target = p[k] * np.log(p[k] / q[k]) + (1 - p[k]) * np.log((1 - p[k]) / (1 - q[k]))
    rest = 0.0
    for j in range(len(p)):
        if j != k:
            a, b = p[j] / (1 - p[k]), q[j] / (1 - q[k])
            rest += a * np.log(a / b)
    return target, rest, 1 - p[k]


@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1.0, 8.0, 4.0), (2.0, 0.5, 1.0), (0.0, 1.0, 2.0)])
def test_dkd(logits, check_formula, alpha, beta, temperature):
    student, teacher = logits

    def formula(arrays):
        total = 0.0
        for s, t in zip(arrays["logits"], teacher, strict=True):
            target, rest, _ = parts(s, t, temperature)
            total += alpha * target + beta * rest
        return temperature**2 * total / len(teacher)

    check_formula(DKD(alpha, beta, temperature), {"logits": student}, {"logits": teacher}, formula)


def test_kd_is_the_sum_of_its_parts_with_the_teachers_doubt_as_beta(logits):
    """The paper's starting point, image by image."""
    for student, teacher in zip(*logits, strict=True):
        doubt = parts(student, teacher, 4.0)[2]
        ours, theirs = (Outputs(torch.tensor(x[None])) for x in (student, teacher))
        assert DKD(1.0, float(doubt))(ours, theirs).item() == pytest.approx(KD()(ours, theirs).item())


def test_it_is_zero_at_equality(logits, check_zero_at_equality):
    check_zero_at_equality(DKD(), logits[0])


def test_it_is_finite_with_its_gradient(extreme, check_finite):
    check_finite(DKD(), *extreme)


def test_it_is_exact_where_a_mask_of_a_thousand_is_not(softmax):
    """Logits 3000 apart: with 1000 subtracted from its own, the target would still have all of the probability."""
    teacher = np.array([[3000.0, 2.0, 0.0]])
    student = torch.tensor([[3000.0, 0.0, 2.0]], dtype=torch.float64, requires_grad=True)
    value = DKD(temperature=1.0)(Outputs(student), Outputs(torch.tensor(teacher)))
    p, q = softmax(np.array([[2.0, 0.0]]))[0], softmax(np.array([[0.0, 2.0]]))[0]
    assert value.item() == pytest.approx(8 * (p * np.log(p / q)).sum())
    value.backward()
    np.testing.assert_allclose(student.grad.numpy(), [[0, *(8 * (q - p))]], atol=1e-12)


def test_two_classes_have_the_target_part_alone():
    ours, theirs = torch.tensor([[0.5, 1.0], [2.0, 0.0]]), torch.tensor([[3.0, -1.0], [0.0, 1.0]])
    assert DKD()(Outputs(ours), Outputs(theirs)).item() == pytest.approx(KD()(Outputs(ours), Outputs(theirs)).item())


def test_one_class_costs_nothing(check_finite):
    check_finite(DKD(), Outputs(torch.ones(3, 1, requires_grad=True)), Outputs(torch.zeros(3, 1)))


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"alpha": -1.0}, {"beta": -0.5}])
def test_it_refuses(options):
    with pytest.raises(RequestError, match=f"^{next(iter(options))}="):
        DKD(**options)
