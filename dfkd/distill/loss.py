"""The base class of losses, and how a plain module or function becomes one."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from dfkd.distill.setting import Setting
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError
from dfkd.system.paper import Paper

Family = Literal["outputs", "boundaries", "features", "relations", "students"]
"""What a loss reads: of the teacher, or of students; as docs/losses.md groups them."""


class Loss(nn.Module):
    """A term of `--loss`: a number for a batch that falls as the student becomes like the teacher.

    A subclass defines `forward` and sets the attributes below that differ from their defaults. They are set on the
    class, or in `__init__` if they follow from options; `weight` only on the class. `__init__` takes the options of
    `--loss NAME:key=value`. Each has an annotated type and a default.

    Parameters and submodules train with the student, in its optimizer. They are in the checkpoint, as are buffers and
    `get_extra_state`. None of them is part of the student. Draw random numbers with torch: the run's seed decides them,
    and a resumed run continues them. `metrics.jsonl` has the value of a batch under the loss's name, before its weight.
    `dfkd.distill.align` makes features of two networks comparable.

    A plain module or function of (student, teacher) is a loss, too. It may have the same attributes.

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
    """The features to read, found in both networks: `Outputs.features["last"]`, `Outputs.group("stage")`.

    `first` and `last` are single taps: the output of the first BatchNorm, the input of the last linear layer.
    `stage`, `pre` and `begin` are groups, one map for each resolution: the last map, the same before its activation,
    and the first map of that resolution and width."""
    student_modules: tuple[str, ...] = ()
    """Modules of the student whose outputs are read as features of the same names: for a loss of one architecture."""
    weight: ClassVar[float] = 1.0
    """The weight where `--loss` gives none."""
    asks_teacher: bool = False
    """Whether it asks the teacher for more than the outputs of the batch (`Setting.teacher`).

    Answers that were computed beforehand (`--teacher-views`) are then not enough."""
    reads_kept: bool = False
    """Whether it uses `Outputs.kept`, the classes that `--class-dropping` keeps."""
    reads_view: bool = False
    """Whether it reads `Outputs.view`. A loss from outside `dfkd`, and one that asks the teacher, always has it."""
    reads_peers: bool = False
    """Whether it learns from `Outputs.peers`, the logits of other students. It needs `--also`."""
    peers_every: int = 1
    """For how many steps the other students' answers are kept: 1 takes those of this step, in training mode.

    Above 1 they are answers in evaluation mode, with the weights of the step at which they were taken."""
    per_image: bool = False
    """Whether it is the mean over the batch of a number that each image has by itself.

    Several processes that share a batch then compute the part of their own images. Otherwise each gets the outputs of
    the whole batch, which is right for any loss and takes longer."""
    preparation: int = 0
    """The number of first steps that train only its own layers. It teaches the student nothing meanwhile."""

    family: ClassVar[Family | None] = None
    """Its section of docs/losses.md. Losses of `dfkd.distill.losses` have one."""
    paper: ClassVar[Paper | None] = None
    """The paper that it is from."""

    def bind(self, setting: Setting) -> None:
        """Take the two networks. Called once, before `setup`.

        Keep `setting` itself: a module that is kept as an attribute becomes the loss's own and trains.

        Args:
            setting: The networks, their last linear layers, and the number of images.
        """

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """Build layers of the shapes of a first batch. Called once, without gradients.

        Args:
            student: The student's outputs.
            teacher: The teacher's outputs.
        """

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch, the mean over its images.

        It is also called once before the training, without gradients, as a check. Count and remember nothing while
        `torch.is_grad_enabled()` is false.

        Args:
            student: The student's outputs.
            teacher: The teacher's outputs, without gradients.

        Returns:
            One number, a tensor of shape [].
        """
        raise NotImplementedError

    def finish(self) -> None:
        """Put into the student what belongs to it. Called once after the last step, without gradients."""

    def exits(self, student: Outputs) -> list[Float[Tensor, "batch classes"]]:
        """The logits of heads at which the student could stop earlier, from the shallowest: they are measured, too."""
        return []

    @property
    def uses_networks(self) -> bool:
        """Whether it reads the networks themselves (`bind`)."""
        return type(self).bind is not Loss.bind

    @property
    def divisible(self) -> bool:
        """`per_image`, unless the class has a `forward` of its own and does not say."""
        if "per_image" in vars(self):
            return self.per_image
        declaring = next(kind for kind in type(self).__mro__ if {"per_image", "forward"} & vars(kind).keys())
        return "per_image" in vars(declaring) and self.per_image


class PlainLoss(Loss):
    """A module or function that is no `Loss`, with what it declares. It stays what it was: its state is its own."""

    def __init__(self, plain: Callable[..., Any], function: Callable[..., Any] | None = None) -> None:
        """`plain` is called; `function` is what was named, where that is a function without its options.

        Raises: RequestError for an attribute of another type than a loss has.
        """
        super().__init__()
        self._plain = (plain,)  # in a tuple: the objective registers a module itself
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
        """As it declares."""
        self._call("bind", setting)

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """As it declares."""
        self._call("setup", student, teacher)

    def forward(self, student: Outputs, teacher: Outputs) -> Any:
        """What it returns, whatever that is: it is looked at before the training."""
        return self._plain[0](student, teacher)

    def finish(self) -> None:
        """As it declares."""
        self._call("finish")

    @property
    def uses_networks(self) -> bool:
        """Whether it has a method `bind`."""
        return "bind" in self._hooks

    def _call(self, hook: str, *given: Any) -> None:
        if hook in self._hooks:
            self._hooks[hook](*given)


def as_loss(made: Callable[..., Any], target: Callable[..., Any]) -> Loss:
    """What `target` made, or the function `target` with its options, as a loss. Raises: RequestError as `PlainLoss`."""
    if isinstance(made, Loss):
        return made
    return PlainLoss(made, None if isinstance(target, type) else target)


def default_weight(target: Callable[..., Any]) -> float:
    """The weight that a class or function declares, or 1. Raises: RequestError for one that is no number."""
    declared = getattr(target, "weight", Loss.weight)
    if not isinstance(declared, (int, float)):
        raise RequestError(f"loss {target.__name__}: its attribute weight is a {type(declared).__name__}, not a number")
    return float(declared)


def _taps(declared: Any) -> tuple[str, ...]:
    taps = (declared,) if isinstance(declared, str) else tuple(declared)
    if not all(isinstance(tap, str) for tap in taps):
        raise RequestError(f"taps={declared!r} are not names of features, such as ('last',)")
    return taps
