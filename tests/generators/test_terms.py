"""The terms of the methods' losses, value and gradient, against formulas in NumPy."""

import math

import numpy as np
import pytest
import torch

from dfkd.generators import terms


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(0, 2, (5, 4))


@pytest.fixture
def others():
    return np.random.default_rng(1).normal(0, 2, (5, 4))


def test_one_hot_is_the_cross_entropy_with_the_largest_class(check_term, logits):
    check_term(terms.one_hot, lambda x: -np.log(softmax(x).max(axis=1)).mean(), logits)


def test_one_hot_takes_the_classes_that_are_wanted(check_term, logits):
    labels = np.array([3, 0, 0, 1, 2])
    check_term(
        lambda x: terms.one_hot(x, torch.from_numpy(labels)),
        lambda x: -np.log(softmax(x)[np.arange(5), labels]).mean(),
        logits,
    )


def test_activation_is_minus_the_mean_absolute_feature(check_term, logits):
    check_term(lambda x: terms.activation(x), lambda x: -np.abs(x).mean(), logits, 1e-5)


def test_class_entropy_is_minus_the_entropy_of_the_mean_prediction(check_term, logits):
    def formula(x):
        p = softmax(x).mean(axis=0)
        return (p * np.log10(p)).sum() / math.log10(4)

    check_term(terms.class_entropy, formula, logits)
    even = torch.eye(4, dtype=torch.float64) * 100
    assert terms.class_entropy(even).item() == pytest.approx(-1)
    one = torch.zeros(3, 4) + torch.tensor([200.0, 0, 0, 0])
    assert terms.class_entropy(one).item() == pytest.approx(0), "classes without any probability add nothing"


def test_logit_difference_is_minus_the_mean_absolute_difference(check_term, logits, others):
    fixed = torch.from_numpy(others)
    check_term(lambda x: terms.logit_difference(x, fixed), lambda x: -np.abs(x - others).mean(), logits)
    check_term(lambda x: terms.logit_difference(fixed, x), lambda x: -np.abs(x - others).mean(), logits)


def test_divergence_is_from_the_teacher_to_the_student_and_has_both_gradients(check_term, logits, others):
    def formula(teacher, student):
        p, q = softmax(teacher), softmax(student)
        return (p * np.log(p / q)).sum(axis=1).mean()

    fixed = torch.from_numpy(others)
    check_term(lambda x: terms.divergence(x, fixed), lambda x: formula(x, others), logits)
    check_term(lambda x: terms.divergence(fixed, x), lambda x: formula(others, x), logits)


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_adversarial_is_minus_the_divergence_where_both_choose_one_class(check_term, logits, side):
    other = logits + np.random.default_rng(1).normal(0, 1.5, logits.shape)
    agree = logits.argmax(axis=1) == other.argmax(axis=1)
    assert 0 < agree.sum() < len(agree)
    fixed = torch.from_numpy(other)

    def term(x):
        return terms.adversarial(x, fixed) if side == "teacher" else terms.adversarial(fixed, x)

    def formula(x):
        p, q = (softmax(x), softmax(other)) if side == "teacher" else (softmax(other), softmax(x))
        return -np.where(agree, (p * np.log(p / q)).sum(axis=1), 0).mean()

    check_term(term, formula, logits)


def test_divergences_have_finite_gradients_where_a_probability_is_zero():
    teacher = torch.tensor([[300.0, 0, -300], [0, 0, 0]], requires_grad=True)
    student = torch.tensor([[-200.0, 0, 100], [0, 5, 0]], requires_grad=True)
    (terms.divergence(teacher, student) + terms.adversarial(teacher, student)).backward()
    assert teacher.grad.isfinite().all() and student.grad.isfinite().all()
