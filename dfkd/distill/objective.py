"""The weighted sum of losses, as written in `--loss kd explicit:0.5 relation:1`."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.distill.loss import Loss, PlainLoss, as_loss, default_weight
from dfkd.distill.setting import Setting
from dfkd.models.features.outputs import Outputs
from dfkd.models.features.spread import gathered
from dfkd.system import ranks
from dfkd.system.components import Kind
from dfkd.system.errors import RequestError
from dfkd.system.foreign import Foreign, Raised, is_theirs
from dfkd.system.limits import Range
from dfkd.system.shares import weight

LOSS = Kind("loss", ("dfkd.distill.losses", "dfkd.distill.specialists_loss", "dfkd.distill.tree_loss"), numbers=1)
_UNFIT = (TypeError, AttributeError, KeyError)
"""What a loss raises for outputs that lack what it reads."""


@dataclass(frozen=True)
class Term:
    """A loss with its weight and the name of its metric."""

    name: str
    weight: float
    loss: Loss
    module: nn.Module | None
    """What learns and is kept: the loss itself or, of a plain one, the module that it was."""
    written: Callable[..., Any]
    """What was named: whose code it is."""
    identity: str
    """Its canonical spelling, with everything that decides it."""

    def prepare(self, student: Outputs, teacher: Outputs, setting: Setting) -> None:
        """Show it the networks, and let it build its parameters. Raises: RequestError that names it."""
        with self._named():
            self.loss.bind(setting)
            self.loss.setup(student, teacher)

    def check(self, student: Outputs, teacher: Outputs) -> None:
        """Raises: RequestError for one that does not take these outputs or gives no number."""
        what = "cannot take the outputs of student and teacher"
        try:
            with self._named(what):
                value = self.loss(student, teacher)
        except _UNFIT as error:  # of our own losses another error is a defect
            raise RequestError(f"loss {self.name} {what}: {error}") from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            found = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise RequestError(f"loss {self.name} gives {found}, not one number as a tensor")

    def value(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Of a batch. Raises: RequestError for what code of one's own raises."""
        with self._foreign("fails"):
            value: Tensor = self.loss(student, teacher)
        return value

    def finish(self) -> None:
        """After the last step. Raises: RequestError that names it."""
        with self._named():
            self.loss.finish()

    def _foreign(self, what: str) -> Foreign:
        return Foreign(f"loss {self.name} {what}:", self.written)

    @contextmanager
    def _named(self, what: str = "fails") -> Iterator[None]:
        """Say of an error of which loss it is."""
        try:
            with self._foreign(what):
                yield
        except Raised:
            raise
        except RequestError as error:
            raise RequestError(f"loss {self.name}: {error}") from error


class Objective(nn.Module):
    """Named losses and their weights. The parameters of the losses train with the student."""

    def __init__(self, terms: Sequence[Term]) -> None:
        super().__init__()
        self._terms = list(terms)
        # registered under positions: a loss's own name may hold dots, which module names may not
        self.losses = nn.ModuleList(term.module for term in terms if term.module is not None)

    @property
    def names(self) -> list[str]:
        """The names of the metrics."""
        return [term.name for term in self._terms]

    @property
    def spelled(self) -> list[str]:
        """The losses as canonical texts, with everything that decides them."""
        return [term.identity for term in self._terms]

    @property
    def written(self) -> list[Callable[..., Any]]:
        """The classes and functions that were named."""
        return [term.written for term in self._terms]

    @property
    def taps(self) -> frozenset[str]:
        """The features that the losses read."""
        return frozenset(tap for term in self._terms for tap in term.loss.taps)

    @property
    def student_modules(self) -> dict[str, str]:
        """The modules of the student whose outputs are read, with the name of a loss that reads each."""
        return {path: term.name for term in self._terms for path in term.loss.student_modules}

    @property
    def beyond_logits(self) -> list[str]:
        """The losses, by name, that need more of the teacher than its logits: features, or answers to other views."""
        return [term.name for term in self._terms if term.loss.taps or term.loss.asks_teacher]

    @property
    def binds(self) -> bool:
        """Whether a loss needs the networks themselves."""
        return any(term.loss.uses_networks for term in self._terms)

    @property
    def preparation(self) -> dict[str, int]:
        """The losses, by name, that begin with so many steps for layers of their own: they teach nothing meanwhile."""
        return {term.name: term.loss.preparation for term in self._terms if term.loss.preparation}

    @property
    def reads_kept(self) -> bool:
        """Whether a loss heeds the classes that are dropped (`Outputs.kept`)."""
        return any(term.loss.reads_kept for term in self._terms)

    @property
    def reads_peers(self) -> list[str]:
        """The losses, by name, that learn from other students (`Outputs.peers`)."""
        return [term.name for term in self._terms if term.loss.reads_peers]

    @property
    def peers_every(self) -> int:
        """How old the weights may become by which other students answer: the greatest that a loss wants."""
        return max((term.loss.peers_every for term in self._terms if term.loss.reads_peers), default=1)

    def setup(self, student: Outputs, teacher: Outputs, setting: Setting) -> None:
        """Show the losses the networks, and let them build their parameters from the outputs of a first batch."""
        for term in self._terms:
            term.prepare(student, teacher, setting)

    @torch.no_grad()
    def finish(self) -> None:
        """After the last step: losses whose parameters become part of the student put them there."""
        for term in self._terms:
            term.finish()

    @property
    def has_exits(self) -> bool:
        """Whether a loss has heads at which the student could stop earlier."""
        return any(type(term.loss).exits is not Loss.exits for term in self._terms)

    @torch.no_grad()
    def exits(self, student: Outputs) -> list[Float[Tensor, "batch classes"]]:
        """The logits of the losses' heads, in evaluation mode."""
        self.eval()
        return [logits.float() for term in self._terms for logits in term.loss.exits(student)]

    @torch.no_grad()
    def check(self, student: Outputs, teacher: Outputs) -> None:
        """Try every loss on a batch. Raises: RequestError for one that does not take outputs or gives no number."""
        for term in self._terms:
            term.check(student, teacher)

    def forward(
        self, student: Outputs, teacher: Outputs, of: int | None = None
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The total, and each loss before its weight (detached, for the metrics).

        Where several processes share a batch of `of` images, the outputs are those of this one's share. The mean over
        the processes is then the loss of the whole batch.
        """
        total = student.logits.new_zeros(())
        values = {}
        shared = of is not None and ranks.count() > 1
        batch = self._of_all_ranks(student, teacher, of) if of is not None and shared else (student, teacher)
        for term in self._terms:
            if not shared:
                value = term.value(student, teacher)
            elif term.loss.divisible:
                value = term.value(student, teacher) * weight(of or 1)
            else:
                value = term.value(*batch)
            total = total + term.weight * value
            values[term.name] = value.detach()
        return total, values

    def _of_all_ranks(self, student: Outputs, teacher: Outputs, of: int) -> tuple[Outputs, Outputs]:
        """What the losses that look at the whole batch read of it."""
        losses = [term.loss for term in self._terms if not term.loss.divisible]
        if not losses:
            return student, teacher
        taps = {tap for loss in losses for tap in (*loss.taps, *loss.student_modules)}
        view = any(loss.asks_teacher or loss.reads_view or _is_own(loss) for loss in losses)
        return gathered(student, of, taps), gathered(teacher, of, taps, view)


def _is_own(loss: Loss) -> bool:
    """Whether it is somebody's own, of which it is not known what it reads."""
    return is_theirs(loss) or isinstance(loss, PlainLoss)


def build_objective(specs: Sequence[str]) -> Objective:
    """An Objective from `NAME[:WEIGHT][,key=value...]` texts; a weight that is not written is the loss's own, or 1.

    Raises: RequestError for no loss at all, an unknown one, or two weights.
    """
    terms: list[Term] = []
    for spec in specs:
        component = LOSS.look_up(spec)
        written, target = component.named.numbers, component.target
        if len(written) > 1:
            raise RequestError(f"loss {spec!r} has {len(written)} weights; write one number")
        weight = written[0] if written else default_weight(target)
        if not Range(least=0).holds(weight):
            raise RequestError(f"loss {spec!r}: the weight {weight:g} is not at least 0")
        if isinstance(target, type):
            component = component.checked()
            made = component.build()
        else:
            component = replace(component, given=("student", "teacher")).checked()
            made = functools.partial(target, **(component.calls_with or {}))
        again = sum(term.name.partition("#")[0] == component.name for term in terms)
        name = f"{component.name}#{again + 1}" if again else component.name
        module = made if isinstance(made, nn.Module) else None
        with Foreign(f"loss {name} fails:", target):
            loss = as_loss(made, target)
        terms.append(Term(name, weight, loss, module, target, component.weighed(weight).identity))
    if not terms:
        raise RequestError("there is no loss to learn from; kd is the usual one")
    return Objective(terms)
