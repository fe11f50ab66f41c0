import numpy as np
import pytest
import torch

from dfkd.distill.losses import Alpha
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError


def divergence(p, q, alpha):
    """Of one image, as the paper defines it."""
    if alpha == 1:
        return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))
    if alpha == 0:
        return sum(b * np.log(b / a) for a, b in zip(p, q, strict=True))
    return sum(b * ((a / b) ** alpha - 1) for a, b in zip(p, q, strict=True)) / (alpha * (alpha - 1))


@pytest.mark.parametrize("alphas", [(-1.0, 1.0), (0.0, 0.0), (1.0, 1.0), (-0.5, 2.0), (0.5, 0.5)])
def test_without_a_clip_it_is_the_larger_divergence(rng, check_formula, softmax, alphas):
    student, teacher = rng.normal(size=(6, 5)), rng.normal(size=(6, 5))

    def formula(arrays):
        p, q = softmax(teacher), softmax(arrays["logits"])
        return np.mean([max(divergence(p[i], q[i], alpha) for alpha in alphas) for i in range(6)])

    check_formula(Alpha(*alphas, clip=1e9), {"logits": student}, {"logits": teacher}, formula)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("step", [-1.5e-3, 1.5e-3])
def test_the_limits_are_those_of_the_formula(logits, alpha, step):
    ours, theirs = (torch.tensor(x / 3, requires_grad=True) for x in logits)
    found = []
    for number in (alpha, alpha + step):
        value = Alpha(number, number, clip=1e9)(Outputs(ours), Outputs(theirs.detach()))
        found.append((value.item(), torch.autograd.grad(value, ours)[0].numpy()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-2)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-2, atol=1e-2 * np.abs(found[0][1]).max())


def clipped_value(p, q, alpha, clip):
    """What is compared: the divergence with the clipped importance ratio in its place."""
    if alpha == 1:
        return divergence(p, q, 1)
    return sum(b * (min((a / b) ** alpha, clip) - 1) for a, b in zip(p, q, strict=True)) / (alpha * (alpha - 1))


def clipped_gradient(p, q, alpha, clip):
    """By the logits: -sum_k q_k (w_k / alpha) grad log q_k, where grad_j log q_k = [j = k] - q_j."""
    gradient = np.zeros(len(q))
    for k in range(len(q)):
        w = p[k] / q[k] if alpha == 1 else min((p[k] / q[k]) ** alpha, clip)
        for j in range(len(q)):
            gradient[j] -= q[k] * w / alpha * ((j == k) - q[j])
    return gradient


def linear_beyond(p, q, alpha, clip):
    """The divergence whose gradient the clipped one is: beyond the clip it goes on as its tangent in q."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        edge = a / clip ** (1 / alpha)  # where (p / q)^alpha = clip
        if (a / b) ** alpha <= clip:
            total += b * (a / b) ** alpha / (alpha * (alpha - 1))
        else:
            total += edge * clip / (alpha * (alpha - 1)) - (clip / alpha) * (b - edge)
    return total - 1 / (alpha * (alpha - 1))


@pytest.mark.parametrize("alphas", [(-1.0, 1.0), (-1.0, -1.0), (-0.5, 0.8)])
def test_the_clip_is_the_authors(logits, softmax, alphas):
    student, teacher = logits
    p, q = softmax(teacher), softmax(student)
    ours = torch.tensor(student, requires_grad=True)
    value = Alpha(*alphas)(Outputs(ours), Outputs(torch.tensor(teacher)))
    value.backward()
    values = [[clipped_value(p[i], q[i], alpha, 5.0) for alpha in alphas] for i in range(6)]
    chosen = [alphas[0] if minus > plus else alphas[1] for minus, plus in values]
    assert len(set(chosen)) == len(set(alphas))  # both sides are taken
    assert any((p[i] / q[i]).max() ** chosen[i] > 5 or (p[i] / q[i]).min() ** chosen[i] > 5 for i in range(6))
    assert value.item() == pytest.approx(np.mean([max(pair) for pair in values]))
    expected = np.array([clipped_gradient(p[i], q[i], chosen[i], 5.0) for i in range(6)]) / 6
    np.testing.assert_allclose(ours.grad.numpy(), expected, rtol=1e-5, atol=1e-10)


def test_the_clipped_gradient_is_that_of_the_divergence_with_a_linear_end(logits, softmax):
    """Central differences of it: at alpha -1, and at 0.5 where the student is too small."""
    for alpha in (-1.0, 0.5):
        student, teacher = logits[0][:1], logits[1][:1]
        ours = torch.tensor(student, requires_grad=True)
        Alpha(alpha, alpha, clip=2.0)(Outputs(ours), Outputs(torch.tensor(teacher))).backward()
        p = softmax(teacher)[0]
        assert ((p / softmax(student)[0]) ** alpha > 2).any()
        expected = np.zeros(5)
        for j in range(5):
            ends = []
            for shift in (1e-5, -1e-5):
                moved = student.copy()
                moved[0, j] += shift
                ends.append(linear_beyond(p, softmax(moved)[0], alpha, 2.0))
            expected[j] = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(ours.grad.numpy()[0], expected, rtol=1e-5, atol=1e-8)


def test_too_much_and_too_little_certainty_are_both_punished():
    """Where the student has a class too little, alpha 1 is the larger; where it has one too much, alpha -1 is."""
    even, sure = torch.zeros(1, 3), torch.tensor([[4.0, 0, 0]])
    for student, teacher, larger in ((sure, even, 1.0), (even, sure, -1.0)):
        values = [Alpha(a, a)(Outputs(student), Outputs(teacher)).item() for a in (-1.0, 1.0)]
        assert Alpha()(Outputs(student), Outputs(teacher)).item() == pytest.approx(max(values))
        assert (values[1] > values[0]) == (larger == 1.0)


def test_it_is_zero_at_equality(logits, check_zero_at_equality):
    check_zero_at_equality(Alpha(), logits[0])


@pytest.mark.parametrize("alphas", [(-1.0, 1.0), (0.0, 0.0), (-3.0, 2.5)])
def test_it_is_finite_with_its_gradient(extreme, check_finite, alphas):
    check_finite(Alpha(*alphas), *extreme)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clip": 1.0}, "^clip=1 is not above 1"),
        ({"alpha_minus": 2.0}, "alpha_minus=2 is not at most alpha_plus=1"),
        ({"alpha_plus": 1e999}, "finite"),
    ],
)
def test_it_refuses(options, said):
    with pytest.raises(RequestError, match=said):
        Alpha(**options)
