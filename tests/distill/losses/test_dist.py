import numpy as np
import pytest
import torch

from dfkd.distill.losses import DIST
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError


def pearson(u, v):
    a, b = [x - sum(u) / len(u) for x in u], [x - sum(v) / len(v) for x in v]
    return sum(x * y for x, y in zip(a, b, strict=True)) / np.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


@pytest.mark.parametrize(("beta", "gamma", "temperature"), [(2.0, 2.0, 4.0), (1.0, 0.0, 1.0), (0.0, 3.0, 2.0)])
def test_dist(logits, check_formula, softmax, beta, gamma, temperature):
    student, teacher = logits

    def formula(arrays):
        p, q = softmax(teacher / temperature), softmax(arrays["logits"] / temperature)
        inter = np.mean([1 - pearson(p[i], q[i]) for i in range(6)])
        intra = np.mean([1 - pearson(p[:, j], q[:, j]) for j in range(5)])
        return temperature**2 * (beta * inter + gamma * intra)

    check_formula(DIST(beta, gamma, temperature), {"logits": student}, {"logits": teacher}, formula)


def test_it_is_zero_at_equality(logits, check_zero_at_equality):
    check_zero_at_equality(DIST(), logits[0])


def test_it_is_zero_up_to_a_factor_and_a_shift_of_the_probabilities(softmax):
    """Half as far from even, image by image alike: every row and every column is correlated by 1."""
    p = softmax(np.random.default_rng(3).normal(size=(6, 5)))
    ours, theirs = (torch.tensor(np.log(x)) for x in (0.5 * p + 0.1, p))
    assert DIST(temperature=1.0)(Outputs(ours), Outputs(theirs)).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_it_is_finite_with_its_gradient(extreme, check_finite, temperature):
    check_finite(DIST(temperature=temperature), *extreme)


def test_what_is_constant_in_the_teacher_teaches_nothing(check_finite):
    """No relation is in equal probabilities, nor in a column of a batch of one."""
    student = Outputs(torch.tensor([[1.0, 2, 4]], requires_grad=True))
    assert check_finite(DIST(), student, Outputs(torch.full((1, 3), 7.0)), most=0) == 0
    sure = Outputs(torch.tensor([[0.0, 1, 5]]))
    rows_alone = DIST(gamma=0.0)(student, sure).item()
    assert DIST()(student, sure).item() == pytest.approx(rows_alone)
    assert rows_alone > 0


def test_a_student_with_equal_logits_gets_a_gradient_that_it_survives(rng, check_finite):
    """As at the start of a network whose last layer is zero; the authors' epsilon of 1e-8 gives one of 100,000."""
    teacher = Outputs(torch.tensor(rng.normal(size=(32, 10)) * 3, dtype=torch.float32))
    start = torch.zeros(32, 10, requires_grad=True)
    before = check_finite(DIST(), Outputs(start), teacher)
    assert 0 < start.grad.norm().item() < 1000
    assert DIST()(Outputs(start - 0.01 * start.grad), teacher) < before


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"beta": -1.0}, {"gamma": -0.5}])
def test_it_refuses(options):
    with pytest.raises(RequestError, match=f"^{next(iter(options))}="):
        DIST(**options)
