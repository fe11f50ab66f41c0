"""Base class of generators, the task that they are given, and checks of their results."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dfkd.models.classifier import Classifier
from dfkd.models.features.outputs import Outputs
from dfkd.models.features.spread import spread
from dfkd.system.errors import RequestError
from dfkd.system.foreign import Foreign
from dfkd.system.paper import Paper
from dfkd.training.sources import Source, Student


@runtime_checkable
class Stateful(Protocol):
    """Object that a checkpoint can hold, such as a module, an optimizer or a bank of images."""

    def state_dict(self) -> Any:
        """Return everything that is needed to continue."""
        ...

    def load_state_dict(self, state: Any) -> Any:
        """Restore the state from `state_dict`."""
        ...


@dataclass(frozen=True)
class Task:
    """The teacher that a generator makes images for, and the size, number and classes of the images."""

    teacher: Classifier
    """The teacher, with the method's `taps`. Its weights never change."""
    size: int
    """Side of the images in pixels."""
    batch: int
    """Images per update of the method."""
    seed: int
    """Seed of all random numbers of the method."""
    wanted: Float[Tensor, " classes"] | None = None
    """Share of each class among the images, for methods that choose classes. None: equal shares."""
    real: Source | None = None
    """Source of real images (`--samples`), for methods that also learn from them. None if there are none."""

    @property
    def channels(self) -> int:
        """Number of channels of the images: 1 or 3."""
        return self.teacher.model.channels

    @property
    def classes(self) -> int:
        """Number of the teacher's classes."""
        return self.teacher.model.classes

    @property
    def device(self) -> torch.device:
        """Device on which all tensors are computed."""
        return self.teacher.place.device


class Method(ABC):
    """A generator: a way to make images from a teacher.

    A subclass takes the `Task` and its own keyword-only options, each with a type and a default. `NAME:key=value` sets
    these options. The subclass sets the class variables that differ from their defaults. `parts` names its networks,
    optimizers and banks, so that a checkpoint has them. Draw random numbers with `self.random`. In the constructor,
    initial weights are drawn by the seed, too.

    Args:
        task: The teacher, the size of the images, and the seed.

    Raises:
        RequestError: The method needs real images, and there are none.
    """

    taps: ClassVar[frozenset[str]] = frozenset()
    """Features of the teacher that the method reads."""
    needs_student: ClassVar[bool] = False
    """Whether `update` needs the student. If true, `uses_student` becomes true."""
    uses_student: ClassVar[bool] = False
    """Whether `update` uses the student if there is one."""
    needs_real: ClassVar[bool] = False
    """Whether the method also learns from real images (`Task.real`)."""
    needs_statistics: ClassVar[bool] = False
    """Whether the method reads the statistics of the teacher's BatchNorm layers. A teacher without them is refused."""
    every: int = 1
    """Student steps from one turn of the method to the next."""
    turns: int = 1
    """Calls of `update` per turn."""
    first: int = 1
    """Calls of `update` before the student's first step."""
    paper: ClassVar[Paper | None] = None
    """The paper that describes the method."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.uses_student = cls.uses_student or cls.needs_student

    def __init__(self, task: Task) -> None:
        if self.needs_real and task.real is None:
            raise RequestError("it also learns from real images, and there are none; give a selection with --samples")
        self.task = task
        self.random = torch.Generator(task.device).manual_seed(task.seed)
        self.updates, self.teacher_forwards = 0, 0

    @abstractmethod
    def update(self, student: Student | None) -> dict[str, Tensor]:
        """Take one training step.

        Args:
            student: The student, if there is one.

        Returns:
            The terms of the method's loss by name, as detached scalars, for the metrics.
        """

    @abstractmethod
    def sample(self, count: int, random: torch.Generator) -> Float[Tensor, "count channels size size"]:
        """Draw images for a batch of the student.

        Args:
            count: The number of images.
            random: The random number generator to draw them with.

        Returns:
            Pixels in [0, 1], [count, channels, size, size], without gradients.
        """

    @abstractmethod
    def updates_for(self, count: int) -> int:
        """Return the default number of `update` calls for a number of images.

        Args:
            count: The number of images to keep.

        Returns:
            The number of calls.
        """

    def available(self) -> int | None:
        """Return how many images a trained method can make.

        Returns:
            The number of images. None: any number.
        """
        return None

    @abstractmethod
    def images(self, start: int, count: int) -> Float[Tensor, "count channels size size"]:
        """Return images of a trained method by number, the same images at every call.

        Args:
            start: The number of the first image, from 0.
            count: The number of images.

        Returns:
            Pixels in [0, 1], [count, channels, size, size].
        """

    @abstractmethod
    def parts(self) -> Mapping[str, Stateful]:
        """Return everything that changes during training, by name.

        Returns:
            Modules, optimizers and banks by name.
        """

    def normalize(self, images: Float[Tensor, "batch channels size size"]) -> Float[Tensor, "batch channels size size"]:
        """Normalize images for the teacher, with gradients.

        Args:
            images: Pixels in [0, 1].

        Returns:
            The teacher's input.
        """
        return self.task.teacher.model.preprocess.normalized(images)

    def teach(self, images: Float[Tensor, "batch channels size size"]) -> Outputs:
        """Run the teacher on images, with gradients to the images, and count the images.

        With several processes, every process passes the same images. Each process computes its share of the batch.

        Args:
            images: Pixels in [0, 1].

        Returns:
            Logits, and features at `taps`.

        Raises:
            RequestError: The images have a gradient, and the teacher's logits give them none.
        """
        self.teacher_forwards += len(images)
        outputs = spread(self.task.teacher.answer)(self.normalize(images))
        if images.requires_grad and torch.is_grad_enabled() and not outputs.logits.requires_grad:
            raise RequestError(
                f"{type(self).__name__} follows the gradient of the teacher's logits, and "
                f"{self.task.teacher.model.spec} has none; give a network as the teacher, or use dfkd select"
            )
        return outputs

    def real(self, count: int) -> Float[Tensor, "count channels size size"]:
        """Return the next real images.

        Args:
            count: The number of images.

        Returns:
            Pixels in [0, 1].
        """
        assert self.task.real is not None
        pixels = self.task.real.sample(count).pixels.to(self.task.device, non_blocking=True)
        return pixels.permute(0, 3, 1, 2).float() / 255

    def labels(self, count: int) -> Int[Tensor, " count"]:
        """Draw a class for each image to make, with the probabilities of `Task.wanted`.

        Args:
            count: The number of images.

        Returns:
            A class for each image.
        """
        wanted = self.task.wanted
        shares = torch.ones(self.task.classes) if wanted is None else wanted
        return torch.multinomial(shares.to(self.task.device), count, replacement=True, generator=self.random)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs.

        Returns:
            The states of `parts`, of the random number generator and of the counters.
        """
        return {
            **{name: part.state_dict() for name, part in self._parts().items()},
            "random": self.random.get_state(),
            "counts": (self.updates, self.teacher_forwards),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state.

        Args:
            state: The result of `state_dict`.
        """
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.random.set_state(state["random"])
        self.updates, self.teacher_forwards = state["counts"]

    def _parts(self) -> dict[str, Stateful]:
        real: dict[str, Stateful] = {} if self.task.real is None else {"real": self.task.real}
        return real | dict(self.parts())


def method_code(method: Method) -> Foreign:
    """Return the context for calls of a method, which reports errors with the method's file and line."""
    return Foreign(f"generator {type(method).__name__} fails:", method)


def updated(method: Method, student: Student | None) -> dict[str, Tensor]:
    """Call `update`. Raises: RequestError unless it returns a dictionary of tensors with one number each."""
    with method_code(method):
        terms = method.update(student)
    if isinstance(terms, dict) and all(isinstance(term, Tensor) and term.numel() == 1 for term in terms.values()):
        return terms
    raise RequestError(
        f"generator {type(method).__name__}: update() returns {type(terms).__name__}, not a dictionary of terms, each "
        "one number as a tensor"
    )


def drawn(method: Method, count: int, draw: Callable[[], object]) -> Tensor:
    """Call `draw`, which makes images with the method. Raises: RequestError unless it returns `count` of them."""
    with method_code(method):
        images = draw()
    shape = (count, method.task.channels, method.task.size, method.task.size)
    if isinstance(images, Tensor) and images.shape == shape and images.is_floating_point():
        return images
    found = f"{images.dtype}{list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
    raise RequestError(f"generator {type(method).__name__} gives {found}, not images in [0, 1] of shape {list(shape)}")


def quantize(images: Float[Tensor, "batch channels height width"]) -> UInt8[Tensor, "batch height width channels"]:
    """Convert images in [0, 1] to uint8 pixels, so that the student, the shards and the user see the same image."""
    return (images.detach().float() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def total(terms: Mapping[str, Float[Tensor, ""]], weights: Mapping[str, float]) -> Float[Tensor, ""]:
    """Return the weighted sum of `terms`."""
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def descend(optimizer: torch.optim.Optimizer, loss: Float[Tensor, ""], *others: torch.optim.Optimizer) -> None:
    """Take one step of each optimizer down `loss`.

    Only the parameters of the optimizers get gradients. A student that is part of `loss` gets none.
    """
    learning = (optimizer, *others)
    for each in learning:
        each.zero_grad(set_to_none=True)
    loss.backward(inputs=[p for each in learning for group in each.param_groups for p in group["params"]])
    for each in learning:
        each.step()
