"""One way to prove a loss: its value and its gradient against a plain NumPy formula in float64."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dfkd.outputs import Outputs

Arrays = Mapping[str, np.ndarray]


def as_outputs(arrays: Arrays, dtype: torch.dtype = torch.float64, grad: bool = False) -> Outputs:
    """Outputs from arrays by name: `logits`, which are zeros [batch, 3] where none are given, and features."""
    tensors = {name: torch.tensor(array, dtype=dtype, requires_grad=grad) for name, array in arrays.items()}
    batch = len(next(iter(tensors.values())))
    logits = tensors.pop("logits") if "logits" in tensors else torch.zeros(batch, 3, dtype=dtype, requires_grad=grad)
    return Outputs(logits, tensors)


def numeric_gradient(formula: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences of the fourth order, entry by entry."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):

        def at(shift: float, i: tuple[int, ...] = i) -> float:
            moved = x.copy()
            moved[i] += shift * step
            return formula(moved)

        gradient[i] = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)
    return gradient


def prove_loss(loss: Callable, student: Arrays, teacher: Arrays, formula: Callable[[Arrays], float]) -> None:
    """`loss` on float64 outputs against `formula(student arrays)`: value and every gradient to 1e-5, relative.

    `formula` closes over the teacher's arrays, and over the loss's own parameters (in float64, after its setup).
    """
    ours, theirs = as_outputs(student, grad=True), as_outputs(teacher)
    value = loss(ours, theirs)
    assert value.ndim == 0
    assert value.item() == pytest.approx(formula(student), rel=1e-5, abs=1e-12)
    value.backward()
    for name, array in student.items():

        def of_one(x: np.ndarray, name: str = name) -> float:
            return formula({**student, name: x})

        expected = numeric_gradient(of_one, array.astype(np.float64))
        tensor = ours.logits if name == "logits" else ours.features[name]
        found = np.zeros_like(expected) if tensor.grad is None else tensor.grad.numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max() + 1e-10)


def prove_own_gradients(loss: Callable, student: Arrays, teacher: Arrays, formula: Callable[[Arrays], float]) -> None:
    """The gradients of the loss's own parameters; `formula` reads them from the loss whenever it is called."""
    loss(as_outputs(student), as_outputs(teacher)).backward()
    parameters = dict(loss.named_parameters())
    assert parameters
    for name, parameter in parameters.items():
        values = parameter.detach().numpy()  # shares its memory

        def of_one(x: np.ndarray, values: np.ndarray = values) -> float:
            before = values.copy()
            values[...] = x
            result = formula(student)
            values[...] = before
            return result

        expected = numeric_gradient(of_one, values.copy())
        found = np.zeros_like(expected) if parameter.grad is None else parameter.grad.numpy()
        atol = 1e-5 * np.abs(expected).max() + 1e-8
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=atol, err_msg=name)


def assert_all_finite(loss: Callable, ours: Outputs, theirs: Outputs) -> float:
    """The value of a loss that is finite, as are its gradients to the student's outputs and its own parameters."""
    value = loss(ours, theirs)
    value.backward()
    given = [t for t in (ours.logits, *ours.features.values()) if t.requires_grad]
    gradients = [t.grad for t in [*given, *loss.parameters()] if t.grad is not None]
    assert gradients
    assert all(bool(t.isfinite().all()) for t in [value, *gradients])
    return value.item()


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """A convolution that keeps the resolution: the images shifted by the kernel's offsets, mixed, summed."""
    out = np.zeros((x.shape[0], weight.shape[0], *x.shape[2:]))
    if bias is not None:
        out += bias[None, :, None, None]
    reach = weight.shape[2] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            part = padded[:, :, i : i + x.shape[2], j : j + x.shape[3]]
            out += np.einsum("oc,nchw->nohw", weight[:, :, i, j], part)
    return out


def normalized(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Batch normalization by the batch's mean and variance per channel."""
    mean, variance = x.mean(axis=(0, 2, 3), keepdims=True), x.var(axis=(0, 2, 3), keepdims=True)
    return weight[:, None, None] * (x - mean) / np.sqrt(variance + 1e-5) + bias[:, None, None]


def pooled(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Averages over as equal parts of the image as there can be; they overlap where it does not divide."""
    out = np.zeros((*x.shape[:2], height, width))
    for i in range(height):
        for j in range(width):
            rows = slice(i * x.shape[2] // height, -(-(i + 1) * x.shape[2] // height))
            columns = slice(j * x.shape[3] // width, -(-(j + 1) * x.shape[3] // width))
            out[:, :, i, j] = x[:, :, rows, columns].mean(axis=(2, 3))
    return out


def nearest(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixel at the same share of the height and the width."""
    rows = [i * x.shape[2] // height for i in range(height)]
    columns = [j * x.shape[3] // width for j in range(width)]
    return x[:, :, rows][:, :, :, columns]


@pytest.fixture
def outputs() -> Callable[..., Outputs]:
    return as_outputs


@pytest.fixture
def prove() -> Callable[..., None]:
    return prove_loss


@pytest.fixture
def prove_own() -> Callable[..., None]:
    return prove_own_gradients


@pytest.fixture
def assert_finite() -> Callable[..., float]:
    return assert_all_finite


@pytest.fixture
def maps() -> SimpleNamespace:
    """Plain NumPy on maps [batch, channels, height, width]: what a loss's own layers compute."""
    return SimpleNamespace(conv=convolved, norm=normalized, pool=pooled, nearest=nearest)


@pytest.fixture
def softmax() -> Callable[..., np.ndarray]:
    def of_rows(x: np.ndarray, axis: int = 1) -> np.ndarray:
        e = np.exp(x - x.max(axis=axis, keepdims=True))
        return e / e.sum(axis=axis, keepdims=True)

    return of_rows


@pytest.fixture
def logits(rng) -> tuple[np.ndarray, np.ndarray]:
    """Of a student and a teacher."""
    return rng.normal(size=(6, 5)) * 3, rng.normal(size=(6, 5)) * 3


EXTREMES = {
    "far": [[200.0, 0, -200], [-200, 200, 0], [0, 0, 0]],
    "two": [[3.0, -1], [0, 2]],
    "one": [[1.0, 2, 3]],
    "same": [[1.0, 1, 1]] * 4,
    "zero": [[0.0, 0, 0]] * 2,
}


@pytest.fixture(params=EXTREMES)
def extreme(request) -> tuple[torch.Tensor, torch.Tensor]:
    """A student's and a teacher's logits where a network can go and a careless loss cannot."""
    teacher = torch.tensor(EXTREMES[request.param])
    return teacher.flip(1).clone().requires_grad_(True), teacher


def finite_loss(loss: Callable, student: torch.Tensor, teacher: Outputs) -> torch.Tensor:
    """Value and gradient are finite. Returns the gradient of the student's logits."""
    value = loss(Outputs(student), teacher)
    assert value.ndim == 0
    assert value.isfinite()
    (gradient,) = torch.autograd.grad(value, student)
    assert gradient.isfinite().all()
    return gradient


@pytest.fixture
def finite() -> Callable[..., torch.Tensor]:
    return finite_loss


def order_free(loss: Callable, student: np.ndarray, teacher: np.ndarray) -> None:
    """The order of the batch's samples does not matter."""
    ours, theirs = torch.tensor(student), torch.tensor(teacher)
    order = torch.randperm(len(ours), generator=torch.Generator().manual_seed(1))
    once = loss(Outputs(ours), Outputs(theirs))
    assert loss(Outputs(ours[order]), Outputs(theirs[order])).item() == pytest.approx(once.item())


@pytest.fixture
def permutes() -> Callable[..., None]:
    return order_free


@pytest.fixture(params=["zeros", "identical", "one image"])
def degenerate(request: pytest.FixtureRequest) -> Callable[[Arrays], dict[str, np.ndarray]]:
    """Makes of one side's arrays a batch of zeros, of one image many times, or of one image."""

    def change(arrays: Arrays) -> dict[str, np.ndarray]:
        first = {name: array[:1] for name, array in arrays.items()}
        return {
            "zeros": {name: 0 * array for name, array in arrays.items()},
            "identical": {name: array.repeat(3, axis=0) for name, array in first.items()},
            "one image": first,
        }[request.param]

    return change
