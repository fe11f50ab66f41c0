"""What a loss is: the base class of ours and of one's own, and how a plain module or function becomes one."""

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
    """A number for a batch that falls as the student becomes like the teacher; a term of `--loss`.

    A subclass gives `forward` and sets those of the attributes below that differ from their defaults, on the class or,
    but for `weight`, in `__init__`, where they may follow from options. `__init__` takes the options of
    `--loss NAME:key=value`: each has an annotated type and a default.

    Parameters and submodules train with the student, in its optimizer. They, the buffers and `get_extra_state` are in
    the checkpoint, and none of them is part of the student. Random numbers are torch's own: the run's seed decides
    them, and a resumed run goes on with them. The value of a batch is in `metrics.jsonl` under the loss's name, before
    its weight. `dfkd.distill.align` makes features of two networks comparable: `same_size`, `projection`, `apply`.

    A plain module or function of (student, teacher) is a loss too; what it has of these attributes counts.
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
    """Whether it needs more of the teacher than the outputs of the batch (`Setting.teacher`): answers that were kept
    beforehand (`--teacher-views`) are then not enough."""
    reads_kept: bool = False
    """Whether it heeds `Outputs.kept`, the classes that `--class-dropping` leaves."""
    reads_view: bool = False
    """Whether it reads `Outputs.view`; a loss of one's own, and one that asks the teacher, has it in any case."""
    reads_peers: bool = False
    """Whether it learns from `Outputs.peers` of the teacher's outputs: what other students say. It needs `--also`."""
    peers_every: int = 1
    """For how many steps the other students say what they said with the same weights, in evaluation mode; 1: what they
    say in this step, as they learn."""
    per_image: bool = False
    """Whether it is the mean over the batch of a number that each image has by itself.

    Where several processes share a batch, each then computes its own images' part. Otherwise each is given the outputs
    of the whole batch, which is right for any loss, and takes longer."""
    preparation: int = 0
    """The first steps that it takes for layers of its own: it teaches the student nothing meanwhile."""

    family: ClassVar[Family | None] = None
    """Its part of docs/losses.md; losses of `dfkd.distill.losses` have one."""
    paper: ClassVar[Paper | None] = None
    """Where it is from."""

    def bind(self, setting: Setting) -> None:
        """Called once, before `setup`: the two networks, to keep or to run. Modules that are kept as attributes would
        become the loss's own: keep `setting` itself.
        """

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """Called once with the outputs for a first batch, without gradients: build what depends on their shapes."""

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """The loss of a batch, the mean over its images. The teacher's outputs have no gradients.

        Called once more before the training, without gradients, to see that it fits: nothing is to be counted or
        remembered where `torch.is_grad_enabled()` is false.
        """
        raise NotImplementedError

    def finish(self) -> None:
        """Called once after the last step, without gradients: what is to become part of the student is put there."""

    def exits(self, student: Outputs) -> list[Float[Tensor, "batch classes"]]:
        """The logits of heads at which the student could stop earlier, from the shallowest: they are measured, too."""
        return []

    @property
    def uses_networks(self) -> bool:
        """Whether it wants the networks themselves: a `Setting` takes a while to make."""
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
