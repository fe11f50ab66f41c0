"""A small teacher and student, and what every method has to stand."""

import copy
from functools import partial

import numpy as np
import pytest
import torch

from dfkd.config.stages.shared import Input
from dfkd.generators.build import build, choose
from dfkd.generators.source import GeneratedSource
from dfkd.models.classifier import answer
from dfkd.models.features.taps import Tapped
from dfkd.models.load import load_model
from dfkd.system.device import Place
from dfkd.training.sampling import ShuffledOrder
from dfkd.training.sources import Batch, WithoutGenerator

SIZE, CLASSES, BATCH = 8, 4, 40
RESNET = "cifar_resnet:depth=8,width=4"
PLACE = Place(torch.device("cpu"), torch.float32)
IN_BFLOAT16 = Place(torch.device("cpu"), torch.bfloat16)


def network(seed, channels=1, architecture=RESNET, size=SIZE):
    """A network whose BatchNorm layers remember something, in evaluation mode."""
    torch.manual_seed(seed)
    separator = "," if ":" in architecture else ":"
    spec = f"{architecture}{separator}num_classes={CLASSES},in_channels={channels}"
    model = load_model(spec, Input("0.5/0.5", size))
    for module in model.module.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, torch.nn.Linear):
            module.weight.data.mul_(4)  # answers that differ from image to image
    return model


class RealImages(WithoutGenerator):
    """A source of images that are there already."""

    images = 100

    def __init__(self, channels):
        self._pixels = torch.randint(0, 256, (100, SIZE, SIZE, channels), dtype=torch.uint8)
        self._order, self._position = ShuffledOrder(100, 0), 0

    def sample(self, count, share=None):
        rows = torch.from_numpy(self._order.rows(self._position, count))
        self._position += count
        return Batch(self._pixels[rows], rows)

    def state_dict(self):
        return {"position": self._position}

    def load_state_dict(self, state):
        self._position = state["position"]


@pytest.fixture
def make():
    """`make("dafl:latent=20", seed=1)` builds a method for the small teacher, with `low` in bfloat16."""

    def build_it(
        text, *, seed=0, channels=1, batch=BATCH, real=False, architecture=RESNET, size=SIZE, low=False, **task
    ):
        teacher = network(5, channels, architecture, size)
        if real:
            torch.manual_seed(3)
            task["real"] = RealImages(channels)
        return build(choose(text), teacher, IN_BFLOAT16 if low else PLACE, batch=batch, seed=seed, **task)

    return build_it


@pytest.fixture
def student():
    """The student as a method sees it; `student.module` is the network, in training mode."""
    return judging(PLACE)


@pytest.fixture
def student_in_bfloat16():
    return judging(IN_BFLOAT16)


def judging(place):
    module = network(6).module.train()
    judge = partial(answer, Tapped(module, {}), place)
    judge.module = module
    return judge


@pytest.fixture
def check_term():
    """Compare a term of one tensor with a formula in float64: its value, and its gradient by central differences."""

    def check(term, formula, x, tolerance=1e-6):
        tensor = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        value = term(tensor)
        value.backward()
        assert value.item() == pytest.approx(formula(x), rel=1e-6, abs=1e-9)
        numeric, step = np.zeros_like(x), 1e-6
        for i in np.ndindex(*x.shape):
            up, down = x.copy(), x.copy()
            up[i] += step
            down[i] -= step
            numeric[i] = (formula(up) - formula(down)) / (2 * step)
        assert np.allclose(tensor.grad.numpy(), numeric, atol=tolerance)

    return check


def learn(method, student, updates):
    """Some updates. Returns the metrics of the last one."""
    metrics = {}
    for _ in range(updates):
        metrics = method.update(student)
    return metrics


def bytes_of(state):
    """Nested state as a comparable value, to the last bit."""
    if isinstance(state, torch.Tensor):
        return (str(state.dtype), tuple(state.shape), state.detach().cpu().contiguous().numpy().tobytes())
    if isinstance(state, dict):
        return {key: bytes_of(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [bytes_of(value) for value in state]
    return state


@pytest.fixture
def check_method(make, student):
    """What holds for every method. `updates` should cross what is particular of it, such as a new batch.

    `use_student`: a method that can do without has one.
    """

    def check(text, updates=3, use_student=False, **task):
        first = make(text, **task)
        answers = student if first.needs_student or use_student else None
        teacher = first.task.teacher.model.module
        before = bytes_of(teacher.state_dict())
        students = bytes_of(student.module.state_dict())
        fresh = bytes_of({name: part.state_dict() for name, part in first.parts().items()})

        metrics = learn(first, answers, updates)
        assert metrics and all(v.ndim == 0 and v.isfinite() and not v.requires_grad for v in metrics.values())
        assert bytes_of({name: part.state_dict() for name, part in first.parts().items()}) != fresh
        assert first.updates == updates and first.teacher_forwards >= updates

        assert bytes_of(teacher.state_dict()) == before, (
            "the teacher, its BatchNorm statistics included, stays as it was"
        )
        assert all(p.grad is None for p in teacher.parameters())
        if answers:
            assert all(p.grad is None for p in student.module.parameters())
            parameters = {name: students[name] for name, _ in student.module.named_parameters()}
            assert {name: bytes_of(p.data) for name, p in student.module.named_parameters()} == parameters

        images = first.sample(7, torch.Generator().manual_seed(1))
        assert images.shape == (7, first.task.channels, SIZE, SIZE) and not images.requires_grad
        assert images.min() >= 0 and images.max() <= 1 and images.std() > 0
        assert torch.equal(first.images(3, 4), first.images(0, 10)[3:7]), "an image is the same whenever asked"

        again = make(text, **task)
        learn(again, answers, updates)
        assert bytes_of(again.state_dict()) == bytes_of(first.state_dict()), "one seed repeats"
        other = make(text, seed=1, **task)
        learn(other, answers, updates)
        assert not torch.equal(other.images(0, 10), first.images(0, 10)), "two seeds differ"

        saved = copy.deepcopy(first.state_dict())
        resumed = make(text, **task)
        resumed.load_state_dict(saved)
        learn(first, answers, updates)
        torch.manual_seed(99)  # a method that draws from the global random numbers does not resume
        learn(resumed, answers, updates)
        assert bytes_of(resumed.state_dict()) == bytes_of(first.state_dict()), "resumed is as uninterrupted"

        source = GeneratedSource(make(text, **task))
        while source.warm_up(student) is not None:
            pass
        source.update(student)
        assert source.sample(5).pixels.shape == (5, SIZE, SIZE, first.task.channels)
        assert source.sample(5).pixels.dtype == torch.uint8 and source.generator_steps >= 1

    return check
