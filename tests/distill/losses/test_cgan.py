"""Conditional adversarial distillation: both sides of the game, and that it stays a game."""

import math

import numpy as np
import pytest
import torch

from dfkd.distill.losses import CGAN
from dfkd.distill.objective import build_objective
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError
from dfkd.training.optim import make_optimizer, set_rate


@pytest.fixture
def make(build, rng):
    """A loss for these logits, whose rows are of any length."""

    def made(student, teacher):
        loss = build(CGAN, {"logits": student}, {"logits": teacher})
        for parameter in loss.parameters():
            parameter.data = torch.tensor(rng.normal(size=parameter.shape) * rng.uniform(0.1, 10, (len(parameter), 1)))
        return loss

    return made


def judge(loss, z, scale):
    """c and d of one image's logits, neuron by neuron."""
    hidden, output = (getattr(loss, name).detach().numpy() for name in ("hidden", "output"))

    def neuron(row, x):
        length = math.sqrt(sum(w**2 for w in row))
        return (sum(w * value for w, value in zip(row, x, strict=False)) + row[-1]) / length

    x = [(value - sum(z) / len(z)) / scale for value in z]
    h = [max(0.0, own + neuron(row, x)) for own, row in zip(x, hidden, strict=True)]
    *c, d = [neuron(row, h) for row in output]
    return c, d


def cost(loss, logits, teacher, teachers):
    """The mean over the batch of half of -log P(teacher's), or -log P(not the teacher's), and -log P(class)."""
    scale = math.sqrt(np.mean([[(value - np.mean(t)) ** 2 for value in t] for t in teacher]))
    total = 0.0
    for z, t in zip(logits, teacher, strict=True):
        c, d = judge(loss, z, scale)
        likely = 1 / (1 + math.exp(-d))
        named = math.exp(c[int(np.argmax(t))]) / sum(math.exp(value) for value in c)
        total -= (math.log(likely if teachers else 1 - likely) + math.log(named)) / 2
    return total / len(logits)


def both(loss, teacher):
    """What the student minimizes and what the discriminator does."""

    def fooling(arrays):
        return cost(loss, arrays["logits"], teacher, True)

    def telling(arrays):
        return cost(loss, teacher, teacher, True) + cost(loss, arrays["logits"], teacher, False)

    return fooling, telling


def test_value_and_both_gradients(logits, make, check_formula):
    student, teacher = logits
    loss = make(student, teacher)
    fooling, telling = both(loss, teacher)
    check_formula(loss, {"logits": student}, {"logits": teacher}, fooling, own=telling)


@pytest.mark.parametrize("weight", [0.0, 0.01, 100.0])
def test_its_weight_is_the_students_alone(logits, make, outputs, weight):
    student, teacher = logits
    loss = make(student, teacher)
    gradients = []
    for factor in (1.0, weight):
        ours = outputs(student, grad=True)
        loss.zero_grad()
        (factor * loss(ours, outputs(teacher))).backward()
        gradients.append([ours.logits.grad, *(p.grad.clone() for p in loss.parameters())])
    (once, *own), (weighted, *own_weighted) = gradients
    np.testing.assert_allclose(weighted, weight * once)
    for a, b in zip(own, own_weighted, strict=True):
        assert a.any()
        assert torch.equal(a, b)


def test_neither_a_shift_nor_the_scale_nor_a_rows_length_is_seen(logits, make, outputs, rng):
    student, teacher = logits
    loss = make(student, teacher)
    value = loss(outputs(student), outputs(teacher)).item()
    shifts = rng.normal(size=(2, len(student), 1)) * 10
    assert loss(outputs(student + shifts[0]), outputs(teacher + shifts[1])).item() == pytest.approx(value)
    assert loss(outputs(student * 50), outputs(teacher * 50)).item() == pytest.approx(value)
    assert loss(outputs(student * 2), outputs(teacher)).item() != pytest.approx(value)  # against the teacher's, it is
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.mul_(7)
    assert loss(outputs(student), outputs(teacher)).item() == pytest.approx(value)


def play(loss, student, teacher, rate, steps=100):
    """Steps of the run's optimizer at its full rate: `student` is a module that changes the teacher's logits."""
    optimizer = make_optimizer([student, loss], "sgd", 5e-4)
    set_rate(optimizer, rate)
    draw = torch.Generator().manual_seed(5)
    for _ in range(steps):
        batch = teacher[torch.randint(len(teacher), (64,), generator=draw)]
        value = loss(Outputs(student(batch)), Outputs(batch))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return value.item()


@pytest.fixture
def spread():
    """Logits of 400 images, and a loss for them."""
    torch.manual_seed(0)
    teacher = 5 * torch.randn(400, 6) @ torch.randn(6, 6)
    loss = CGAN()
    loss.setup(Outputs(teacher), Outputs(teacher))
    return teacher, loss


class Off(torch.nn.Module):
    """A student whose logits are the teacher's, each class's moved by a number of its own."""

    def __init__(self, by, learns=True):
        super().__init__()
        self.by = torch.nn.Parameter(torch.tensor(by), requires_grad=learns)

    def forward(self, logits):
        return logits + self.by


def doubt(loss, student, teacher):
    """Without the class's part, the cost that the student has; log(2) / 2 where nobody can tell."""
    with torch.no_grad():
        ours = loss(Outputs(student(teacher)), Outputs(teacher))
        loss.output[-1] *= -1  # d changes its sign, c does not
        turned = loss(Outputs(student(teacher)), Outputs(teacher))
        loss.output[-1] *= -1
    return (ours - turned).item()  # -d / 2, averaged


BY = [30.0, -20.0, 0.0, 10.0, -30.0, 10.0]


def test_the_discriminator_learns_to_tell_and_nothing_where_there_is_nothing(spread):
    teacher, loss = spread
    apart, equal = Off(BY, learns=False), Off([0.0] * 6, learns=False)
    play(loss, apart, teacher, 0.4)
    assert doubt(loss, apart, teacher) > 1
    play(loss, equal, teacher, 0.1)
    assert doubt(loss, equal, teacher) == pytest.approx(0, abs=0.1)


def test_the_student_comes_to_the_teachers_distribution(spread):
    teacher, loss = spread
    student = Off(BY)
    play(loss, student, teacher, 1.0, steps=200)
    assert (student.by - student.by.mean()).norm() < torch.tensor(BY).norm() / 4


@pytest.mark.parametrize(("rate", "scale"), [(0.4, 1e-2), (0.4, 1e4), (400.0, 1.0)])
def test_no_rate_makes_the_discriminator_diverge(spread, rate, scale):
    """Nor any scale: what it says is bounded by what it reads, whatever it learned."""
    teacher, loss = spread
    teacher, student = scale * teacher, Off([scale * by for by in BY], learns=False)
    play(loss, student, teacher, rate, steps=40)
    assert all(bool(p.isfinite().all()) for p in loss.parameters())
    x, t = (z - z.mean(dim=1, keepdim=True) for z in (student(teacher), teacher))
    x = x / t.square().mean().sqrt()
    h = x.abs() + (1 + x.square().sum(dim=1, keepdim=True)).sqrt()
    most = (1 + h.square().sum(dim=1)).sqrt()
    assert loss(Outputs(student(teacher)), Outputs(teacher)) < (3 * most + math.log(2 * 6)).mean() / 2


def test_it_is_finite_with_its_gradients(extreme, check_finite):
    loss = CGAN()
    loss.setup(*extreme)
    check_finite(loss, *extreme, most=1e3)
    assert loss.hidden.grad is not None


def test_one_class_has_nothing_to_say(check_finite):
    ours, theirs = Outputs(torch.ones(3, 1, requires_grad=True)), Outputs(torch.zeros(3, 1))
    loss = CGAN()
    loss.setup(ours, theirs)
    check_finite(loss, ours, theirs)
    assert not ours.logits.grad.any()


def test_the_batch_may_be_permuted(logits, make, check_permutation):
    check_permutation(make(*logits), *logits)


def test_bfloat16_is_close(logits, make, check_close_in_bf16):
    check_close_in_bf16(make(*logits), *logits)


def test_the_discriminator_is_in_the_checkpoint_and_nothing_else_is(logits, make):
    loss = make(*logits)
    assert {name: value.shape for name, value in loss.state_dict().items()} == {"hidden": (5, 6), "output": (6, 6)}


def test_without_gradients_it_is_the_same_value(logits, make, outputs):
    loss = make(*logits)
    sides = outputs(logits[0]), outputs(logits[1])
    with torch.no_grad():
        value = loss(*sides)
    assert value.item() == loss(*sides).item()


def test_it_takes_no_options():
    with pytest.raises(RequestError, match=r"^loss 'cgan' has no parameter 'temperature'"):
        build_objective(["cgan:temperature=4"])
