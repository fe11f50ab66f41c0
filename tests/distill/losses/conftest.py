"""What the tests of losses share: proofs against plain NumPy formulas in float64, and what any loss must bear."""

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError

Arrays = Mapping[str, np.ndarray]


def as_outputs(arrays: Arrays | np.ndarray, dtype: torch.dtype = torch.float64, grad: bool = False) -> Outputs:
    """Outputs from logits alone, or from arrays by name: `logits` (zeros [batch, 3] if not given) and features."""
    if isinstance(arrays, np.ndarray):
        arrays = {"logits": arrays}
    tensors = {name: torch.tensor(array, dtype=dtype, requires_grad=grad) for name, array in arrays.items()}
    batch = len(next(iter(tensors.values())))
    logits = tensors.pop("logits") if "logits" in tensors else torch.zeros(batch, 3, dtype=dtype, requires_grad=grad)
    return Outputs(logits, tensors)


def numeric_gradient(formula: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences, entry by entry."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):

        def at(shift: float, i: tuple[int, ...] = i) -> float:
            moved = x.copy()
            moved[i] += shift * step
            return formula(moved)

        gradient[i] = (at(1) - at(-1)) / (2 * step)
    return gradient


def prove_loss(
    loss: Callable,
    student: Arrays,
    teacher: Arrays,
    formula: Callable[[Arrays], float],
    own: bool | Callable[[Arrays], float] = False,
) -> None:
    """`loss` on float64 outputs against `formula(student arrays)`: value and every gradient to 1e-5, relative.

    `formula` closes over the teacher's arrays, and over the loss's own parameters (in float64, after its setup).
    `own`: the gradients of these too; `formula` then reads them from the loss whenever it is called. Where they learn
    something else than the student does, `own` is the formula of that.
    """
    ours, theirs = as_outputs(student, grad=True), as_outputs(teacher)
    value = loss(ours, theirs)
    assert value.ndim == 0
    assert value.item() == pytest.approx(formula(student), rel=1e-5, abs=1e-12)
    value.backward()

    def compare(name: str, x: torch.Tensor, of_one: Callable[[np.ndarray], float], floor: float) -> None:
        expected = numeric_gradient(of_one, x.detach().numpy().copy())
        found = np.zeros_like(expected) if x.grad is None else x.grad.numpy()
        atol = 1e-5 * np.abs(expected).max() + floor
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=atol, err_msg=name)

    for name in student:
        tensor = ours.logits if name == "logits" else ours.features[name]
        compare(name, tensor, lambda x, name=name: formula({**student, name: x}), 1e-10)
    parameters = dict(loss.named_parameters()) if own else {}
    of_own = own if callable(own) else formula
    assert parameters or not own
    for name, parameter in parameters.items():
        values = parameter.detach().numpy()  # shares its memory

        def of_one(x: np.ndarray, values: np.ndarray = values) -> float:
            before = values.copy()
            values[...] = x
            result = of_own(student)
            values[...] = before
            return result

        compare(name, parameter, of_one, 1e-8)


def assert_finite(loss: Callable, ours: Outputs, theirs: Outputs, most: float = math.inf) -> float:
    """The value, which is finite, as are the gradients of the student's outputs (none above `most`) and its own."""
    given = [t for t in (ours.logits, *ours.features.values()) if t.requires_grad]
    value = loss(ours, theirs)
    assert value.ndim == 0
    value.backward()
    gradients = [t.grad for t in given if t.grad is not None]
    own = [p.grad for p in loss.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(t.isfinite().all()) for t in [value, *gradients, *own])
    assert max(t.abs().max().item() for t in gradients) <= most
    return value.item()


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """A convolution that keeps the resolution: every pixel's window under the kernel, mixed, summed."""
    reach = weight.shape[2] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
    out = np.einsum("ocij,nchwij->nohw", weight, windows)
    return out if bias is None else out + bias[:, None, None]


def normalized(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Batch normalization by the batch's mean and variance per channel."""
    mean, variance = x.mean(axis=(0, 2, 3), keepdims=True), x.var(axis=(0, 2, 3), keepdims=True)
    return weight[:, None, None] * (x - mean) / np.sqrt(variance + 1e-5) + bias[:, None, None]


def pooled(x: np.ndarray, *size: int) -> np.ndarray:
    """Averages over as equal parts of the image as there can be; they overlap where it does not divide."""
    parts = [
        [slice(i * n // m, -(-(i + 1) * n // m)) for i in range(m)] for n, m in zip(x.shape[2:], size, strict=True)
    ]
    rows, columns = parts
    return np.stack([np.stack([x[:, :, r, c].mean(axis=(2, 3)) for c in columns], -1) for r in rows], -2)


def nearest(x: np.ndarray, *size: int) -> np.ndarray:
    """The pixel at the same share of the height and the width."""
    rows, columns = ([i * n // m for i in range(m)] for n, m in zip(x.shape[2:], size, strict=True))
    return x[:, :, rows][:, :, :, columns]


@pytest.fixture
def outputs() -> Callable[..., Outputs]:
    return as_outputs


@pytest.fixture
def check_formula() -> Callable[..., None]:
    return prove_loss


@pytest.fixture
def check_finite() -> Callable[..., float]:
    return assert_finite


@pytest.fixture
def maps() -> SimpleNamespace:
    """Plain NumPy on maps [batch, channels, height, width]: what a loss's own layers compute."""
    return SimpleNamespace(conv=convolved, norm=normalized, pool=pooled, nearest=nearest)


@pytest.fixture
def build() -> Callable[..., torch.nn.Module]:
    """A loss of this kind after its setup on these arrays, in float64."""

    def built(kind: type, student: Arrays, teacher: Arrays, **options: object) -> torch.nn.Module:
        loss = kind(**options)
        loss.setup(as_outputs(student), as_outputs(teacher))
        return loss.double()

    return built


@pytest.fixture
def normal(rng) -> Callable[..., tuple[dict[str, np.ndarray], ...]]:
    """Random arrays for each side given by its shapes."""
    return lambda *sides: tuple({name: rng.normal(size=shape) for name, shape in side.items()} for side in sides)


@pytest.fixture
def logits(rng) -> tuple[np.ndarray, np.ndarray]:
    """Of a student and a teacher."""
    return rng.normal(size=(6, 5)) * 3, rng.normal(size=(6, 5)) * 3


@pytest.fixture
def softmax() -> Callable[..., np.ndarray]:
    def of_rows(x: np.ndarray, axis: int = 1) -> np.ndarray:
        e = np.exp(x - x.max(axis=axis, keepdims=True))
        return e / e.sum(axis=axis, keepdims=True)

    return of_rows


@pytest.fixture
def check_permutation() -> Callable[..., float]:
    """The order of the batch's samples does not matter. Gives the value."""

    def check(loss: Callable, student: Arrays | np.ndarray, teacher: Arrays | np.ndarray) -> float:
        sides = as_outputs(student), as_outputs(teacher)
        order = torch.randperm(len(sides[0].logits), generator=torch.Generator().manual_seed(1))
        turned = [Outputs(x.logits[order], {name: f[order] for name, f in x.features.items()}) for x in sides]
        once = loss(*sides).item()
        assert loss(*turned).item() == pytest.approx(once, rel=1e-9)
        return once

    return check


@pytest.fixture
def check_zero_at_equality() -> Callable[..., None]:
    """A student that answers as the teacher costs nothing, and stays: its gradient is 0."""

    def check(
        loss: Callable, same: Arrays | np.ndarray, dtype: torch.dtype = torch.float64, most: float = 1e-12
    ) -> None:
        ours = as_outputs(same, dtype, grad=True)
        value = loss(ours, as_outputs(same, dtype))
        assert value.item() == pytest.approx(0, abs=most)
        value.backward()
        gradients = [t.grad for t in (ours.logits, *ours.features.values()) if t.grad is not None]
        assert all(t.abs().max() < 1e-6 for t in gradients)

    return check


@pytest.fixture
def check_averages_maps(rng) -> Callable[..., None]:
    """A `last` feature that is a map counts as its mean over the pixels."""

    def check(loss: Callable, student: Arrays, teacher: Arrays) -> None:
        maps = rng.normal(size=(*student["last"].shape, 2, 3))
        sides = [as_outputs({**student, "last": x}) for x in (maps, maps.mean(axis=(2, 3)))]
        values = [loss(ours, as_outputs(teacher)).item() for ours in sides]
        assert values[0] == pytest.approx(values[1])

    return check


@pytest.fixture
def check_close_in_bf16() -> Callable[..., None]:
    """Outputs in bfloat16 give nearly the value of those in float32, in float32."""

    def check(loss: torch.nn.Module, student: Arrays | np.ndarray, teacher: Arrays | np.ndarray) -> None:
        exact, low = (
            loss.float()(*(as_outputs(side, dtype) for side in (student, teacher)))
            for dtype in (torch.float32, torch.bfloat16)
        )
        assert low.dtype == torch.float32
        assert low.item() == pytest.approx(exact.item(), rel=0.03)

    return check


@pytest.fixture
def check_refuses_one_pixel(build, normal) -> Callable[..., None]:
    """Batch normalization of one image of one pixel is refused."""

    def check(kind: type, tap: str) -> None:
        sides = normal({tap: (2, 2, 1, 1)}, {tap: (2, 3, 1, 1)})
        loss = build(kind, *sides)
        with pytest.raises(RequestError, match="give a --batch-size of 2 or more"):
            loss(*(as_outputs({tap: side[tap][:1]}) for side in sides))

    return check


EXTREMES = {
    "far": [[200.0, 0, -200], [-200, 200, 0], [0, 0, 0]],
    "two": [[3.0, -1], [0, 2]],
    "one": [[1.0, 2, 3]],
    "same": [[1.0, 1, 1]] * 4,
    "zero": [[0.0, 0, 0]] * 2,
}


@pytest.fixture(params=EXTREMES)
def extreme(request) -> tuple[Outputs, Outputs]:
    """A student's and a teacher's logits where a network can go and a careless loss cannot."""
    teacher = torch.tensor(EXTREMES[request.param])
    return Outputs(teacher.flip(1).clone().requires_grad_(True)), Outputs(teacher)


@pytest.fixture(params=["zeros", "some zeros", "dead", "constant", "identical", "one image", "huge"])
def check_survives(request) -> Callable[..., None]:
    """Value and gradients stay finite in float32 where the student's features, or both sides', are degenerate."""

    def changed(x: np.ndarray) -> np.ndarray:
        if request.param in ("some zeros", "dead"):  # a sample, or every second channel
            x = x.copy()
            x[(1,) if request.param == "some zeros" else (slice(None), slice(0, None, 2))] = 0
            return x
        changes = {"zeros": 0 * x, "constant": 0 * x + 1, "identical": x[[0] * len(x)], "one image": x[:1]}
        return changes.get(request.param, 1e6 * x)

    def check(loss: torch.nn.Module, student: Arrays, teacher: Arrays, most: float = math.inf) -> None:
        ours = {name: changed(x) for name, x in student.items()}
        batch = len(next(iter(ours.values())))
        for theirs in ({n: x[:batch] for n, x in teacher.items()}, {n: changed(x) for n, x in teacher.items()}):
            sides = as_outputs(ours, torch.float32, grad=True), as_outputs(theirs, torch.float32)
            assert_finite(loss.float(), *sides, most)

    return check
