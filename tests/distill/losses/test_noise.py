import numpy as np
import pytest
import torch

from dfkd.distill.losses import Noise
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError


@pytest.fixture
def trained(build, rng):
    """A loss whose matrix is not even any more."""

    def make(classes, accuracy=0.8):
        zeros = {"logits": np.zeros((2, classes))}
        loss = build(Noise, zeros, zeros, accuracy=accuracy)
        assert not loss.errors.any()
        loss.errors.data = torch.tensor(rng.normal(size=(classes, classes - 1)))
        return loss

    return make


def matrix(errors, accuracy):
    """Q, entry by entry: row i is what the teacher says of images of class i."""
    classes = len(errors)
    q = np.zeros((classes, classes))
    for i in range(classes):
        q[i, i] = accuracy
        beside = [j for j in range(classes) if j != i]
        e = np.exp(errors[i])
        for j, share in zip(beside, e / e.sum(), strict=True):
            q[i, j] = (1 - accuracy) * share
    return q


def likelihood(student, teacher, errors, accuracy, softmax):
    q, total = matrix(errors, accuracy), 0.0
    np.testing.assert_allclose(q.sum(axis=1), 1)
    for s, t in zip(softmax(student), teacher, strict=True):
        total -= np.log(sum(s[i] * q[i, t.argmax()] for i in range(len(s))))
    return total / len(student)


def test_noise(logits, trained, check_formula, softmax):
    student, teacher = logits
    loss = trained(5)
    errors = loss.errors.detach().numpy()
    check_formula(
        loss,
        {"logits": student},
        {"logits": teacher},
        lambda arrays: likelihood(arrays["logits"], teacher, errors, 0.8, softmax),
        own=True,
    )


def test_its_minimum_is_a_student_certain_of_the_teachers_class(trained):
    teacher = torch.eye(5, dtype=torch.float64)
    loss = trained(5)
    assert loss(Outputs(100 * teacher), Outputs(teacher)).item() == pytest.approx(-np.log(0.8))
    assert loss(Outputs(teacher), Outputs(teacher)).item() > -np.log(0.8)


def test_two_classes_have_one_way_to_err(trained, outputs, softmax):
    student, teacher = np.array([[1.0, -1], [0.5, 0]]), np.array([[0.0, 2], [3, 0]])
    loss = trained(2)
    value = loss(outputs({"logits": student}), outputs({"logits": teacher}))
    value.backward()
    s = softmax(student)
    expected = -np.log([s[0, 1] * 0.8 + s[0, 0] * 0.2, s[1, 0] * 0.8 + s[1, 1] * 0.2]).mean()
    assert value.item() == pytest.approx(expected)
    assert not loss.errors.grad.any()


def test_it_is_finite_with_its_gradients(extreme, check_finite):
    loss = Noise(0.999999)
    loss.setup(*extreme)
    check_finite(loss, *extreme)
    assert loss.errors.grad is not None


def test_the_matrix_is_in_the_checkpoint_and_trains(trained):
    loss = trained(4)
    assert list(loss.state_dict()) == ["errors"]
    assert [p.shape for p in loss.parameters()] == [(4, 3)]


@pytest.mark.parametrize("accuracy", [0.0, 1.0, -0.5, 95.23])
def test_it_refuses(accuracy):
    with pytest.raises(RequestError, match=f"^accuracy={accuracy:g} is not above 0 and below 1"):
        Noise(accuracy)
