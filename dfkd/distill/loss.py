"""The base class of losses, and the conversion of a plain module or function to a loss."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.distill.setting import Setting
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError
from dfkd.system.paper import Paper

Family = Literal["outputs", "boundaries", "features", "relations", "students"]
"""What a loss reads, as docs/losses.md groups the losses: outputs or features of the teacher, or other students."""


class Loss(nn.Module):
    """Base class of losses: one number for a batch that falls as the student becomes like the teacher.

    A subclass defines `forward` and sets those attributes below that differ from their defaults. Set them on the class,
    or in `__init__` if they depend on options. Set `weight` on the class only. `__init__` takes the options of `--loss
    NAME:key=value`. Each option has an annotated type and a default.

    Parameters and submodules train with the student, in the same optimizer. The checkpoint holds them, and also buffers
    and `get_extra_state`. None of them becomes part of the student. Draw random numbers with torch: they then depend on
    the run's seed, and a resumed run continues their sequence. `metrics.jsonl` has the loss of a batch under the loss's
    name, before it is multiplied by its weight. `dfkd.distill.align` makes features of two networks comparable.

    A plain module or function of (student, teacher) is also a loss. It may declare `taps`, `weight`, `asks_teacher`,
    `reads_kept`, `reads_peers`, `peers_every`, `per_image` and `preparation`. It may define `bind`, `setup` and
    `finish`.

    Example:
        >>> import torch
        >>> from dfkd.models.features.outputs import Outputs
        >>> class Gap(Loss):
        ...     def __init__(self, power: int = 2):
        ...         super().__init__()
        ...         self.power = power
        ...     def forward(self, student, teacher):
        ...         return (student.logits - teacher.logits).abs().pow(self.power).mean()
        >>> Gap()(Outputs(torch.zeros(4, 10)), Outputs(torch.ones(4, 10)))
        tensor(1.)
    """

    taps: tuple[str, ...] = ()
    """Names of the features to read, found in both networks: `Outputs.features["last"]`, `Outputs.group("stage")`.

    `first` and `last` are single taps: the output of the first BatchNorm, and the input of the last linear layer.
    `stage`, `pre` and `begin` are groups, with one map for each resolution. `stage` is the last map of a resolution,
    and `pre` is the same map before its activation. `begin` is the first map of that resolution and width."""
    student_modules: tuple[str, ...] = ()
    """Paths of student modules whose outputs are features of the same names, for a loss of one architecture."""
    weight: ClassVar[float] = 1.0
    """Weight of the loss if `--loss` gives none."""
    asks_teacher: bool = False
    """Whether the loss calls `Setting.teacher`, beyond the teacher's outputs for the batch.

    Recorded answers (`--teacher-views`) are then not enough."""
    reads_kept: bool = False
    """Whether the loss uses `Outputs.kept`, the classes that `--class-dropping` keeps."""
    reads_view: bool = False
    """Whether the loss reads `Outputs.view`.

    A loss from outside `dfkd`, and a loss with `asks_teacher`, always receives the view."""
    reads_peers: bool = False
    """Whether the loss learns from `Outputs.peers`, the logits of other students. It needs `--also`."""
    peers_every: int = 1
    """Number of steps between copies of the other students' weights; 1 uses their current weights.

    With 1, the logits of the other students are those of the same step, in training mode. Above 1, copies in evaluation
    mode compute the logits, with the weights of the step at which they were copied."""
    per_image: bool = False
    """Whether the loss is a mean over the batch of one number per image, independent of the other images.

    Several processes that share a batch then compute the loss of their own images. Otherwise each process receives the
    outputs of the whole batch. This is correct for every loss but slower."""
    preparation: int = 0
    """Number of initial steps that train only the loss's own layers. The student gets no gradient from it meanwhile."""

    family: ClassVar[Family | None] = None
    """Section of docs/losses.md, for losses of `dfkd.distill.losses`."""
    paper: ClassVar[Paper | None] = None
    """Paper that defines the loss."""

    def bind(self, setting: Setting) -> None:
        """Receive the two networks. Called once, before `setup`.

        Keep `setting` itself: a network that is kept as an attribute becomes a submodule of the loss and trains.

        Args:
            setting: The networks, their last linear layers, and the number of images.
        """

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """Build layers for the shapes of a first batch. Called once, without gradients.

        Args:
            student: The student's outputs.
            teacher: The teacher's outputs.
        """

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch, the mean over its images.

        The method is also called once before the training, without gradients, as a check. Count and remember nothing
        while `torch.is_grad_enabled()` is false.

        Args:
            student: The student's outputs.
            teacher: The teacher's outputs, without gradients.

        Returns:
            One number, a tensor of shape [].
        """
        raise NotImplementedError

    def finish(self) -> None:
        """Write into the student what belongs to it. Called once after the last step, without gradients."""

    def exits(self, student: Outputs) -> list[Float[Tensor, "batch classes"]]:
        """Return the logits of heads at which the student could stop early. The test measures their accuracy, too.

        Args:
            student: The student's outputs for a batch.

        Returns:
            For each head, from the shallowest, logits [batch, classes].
        """
        return []

    @property
    def uses_networks(self) -> bool:
        """Whether the loss overrides `bind` to read the networks themselves."""
        return type(self).bind is not Loss.bind

    @property
    def divisible(self) -> bool:
        """Value of `per_image`, or False if the class overrides `forward` without declaring `per_image`."""
        if "per_image" in vars(self):
            return self.per_image
        declaring = next(kind for kind in type(self).__mro__ if {"per_image", "forward"} & vars(kind).keys())
        return "per_image" in vars(declaring) and self.per_image


class PlainLoss(Loss):
    """Wrapper of a plain module or function that is not a `Loss`, with the attributes that it declares.

    The wrapped module stays as it is, and keeps its own state.
    """

    def __init__(self, plain: Callable[..., Any], function: Callable[..., Any] | None = None) -> None:
        """Wrap `plain`, and read the attributes of `function` or, without it, of `plain`.

        `function` is the function as it was named, if `plain` is that function with its options.

        Raises: RequestError for an attribute of another type than a loss has.
        """
        super().__init__()
        self._plain = (plain,)  # in a tuple, so that it is not registered here: the objective registers the module
        where = function or plain
        self.taps = _taps(getattr(where, "taps", ()))
        self.asks_teacher = bool(getattr(where, "asks_teacher", False))
        self.reads_kept = bool(getattr(where, "reads_kept", False))
        self.reads_peers = bool(getattr(where, "reads_peers", False))
        self.peers_every = int(getattr(where, "peers_every", 1))
        self.per_image = bool(getattr(where, "per_image", False))
        self.preparation = int(getattr(where, "preparation", 0))
        self._hooks: dict[str, Callable[..., Any]] = {
            name: hook for name in ("bind", "setup", "finish") if callable(hook := getattr(where, name, None))
        }

    def bind(self, setting: Setting) -> None:
        """Call the wrapped object's `bind`, if any."""
        self._call("bind", setting)

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """Call the wrapped object's `setup`, if any."""
        self._call("setup", student, teacher)

    def forward(self, student: Outputs, teacher: Outputs) -> Any:
        """Return the wrapped object's result, of any type: `Term.check` checks it before the training."""
        return self._plain[0](student, teacher)

    def finish(self) -> None:
        """Call the wrapped object's `finish`, if any."""
        self._call("finish")

    @property
    def uses_networks(self) -> bool:
        """Whether the wrapped object has a method `bind`."""
        return "bind" in self._hooks

    def _call(self, hook: str, *given: Any) -> None:
        if hook in self._hooks:
            self._hooks[hook](*given)


class PreparedLoss(Loss):
    """A loss that counts its steps in `steps`, to know when the first `preparation` of them are over."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0  # on the host, so that no step synchronizes with the device; the extra state saves it

    def get_extra_state(self) -> Tensor:
        """Return the number of steps taken, for the checkpoint."""
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the number of steps from a checkpoint."""
        self.steps = int(state)


def as_loss(made: Callable[..., Any], target: Callable[..., Any]) -> Loss:
    """Return `made` as a loss: a `Loss` unchanged, and any other module or function in a `PlainLoss`.

    `made` is an instance of the class `target`, or the function `target` with its options.

    Raises: RequestError as `PlainLoss`.
    """
    if isinstance(made, Loss):
        return made
    return PlainLoss(made, None if isinstance(target, type) else target)


def default_weight(target: Callable[..., Any]) -> float:
    """Return the weight that a class or function declares, or 1. Raises: RequestError if the weight is not a number."""
    declared = getattr(target, "weight", Loss.weight)
    if not isinstance(declared, (int, float)):
        raise RequestError(f"loss {target.__name__}: its attribute weight is a {type(declared).__name__}, not a number")
    return float(declared)


def _taps(declared: Any) -> tuple[str, ...]:
    taps = (declared,) if isinstance(declared, str) else tuple(declared)
    if not all(isinstance(tap, str) for tap in taps):
        raise RequestError(f"taps={declared!r} are not names of features, such as ('last',)")
    return taps
