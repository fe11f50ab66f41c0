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
"""Exceptions that a loss raises for outputs that lack what it reads."""


@dataclass(frozen=True)
class Term:
    """One loss of the sum, with its weight and the name of its metric."""

    name: str
    weight: float
    loss: Loss
    module: nn.Module | None
    """Module with parameters and state: the loss itself, the module that a plain loss wraps, or None."""
    written: Callable[..., Any]
    """Class or function that the name refers to, to tell whose code raised an error."""
    identity: str
    """Canonical spelling of the loss, with everything that decides its values."""

    def prepare(self, student: Outputs, teacher: Outputs, setting: Setting) -> None:
        """Give the loss the networks, and let it build its parameters. Raises: RequestError that names the loss."""
        with self._named():
            self.loss.bind(setting)
            self.loss.setup(student, teacher)

    def check(self, student: Outputs, teacher: Outputs) -> None:
        """Raise RequestError if the loss does not accept these outputs or does not return one number."""
        what = "cannot take the outputs of student and teacher"
        try:
            with self._named(what):
                value = self.loss(student, teacher)
        except _UNFIT as error:  # any other exception of a built-in loss is a bug
            raise RequestError(f"loss {self.name} {what}: {error}") from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            found = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise RequestError(f"loss {self.name} gives {found}, not one number as a tensor")

    def value(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch. Raises: RequestError for exceptions of code outside `dfkd`."""
        with self._foreign("fails"):
            value: Tensor = self.loss(student, teacher)
        return value

    def finish(self) -> None:
        """Finish the loss after the last step. Raises: RequestError that names the loss."""
        with self._named():
            self.loss.finish()

    def _foreign(self, what: str) -> Foreign:
        return Foreign(f"loss {self.name} {what}:", self.written)

    @contextmanager
    def _named(self, what: str = "fails") -> Iterator[None]:
        """Put the name of the loss into errors raised within the block."""
        try:
            with self._foreign(what):
                yield
        except Raised:
            raise
        except RequestError as error:
            raise RequestError(f"loss {self.name}: {error}") from error


class Objective(nn.Module):
    """Weighted sum of named losses. The parameters of the losses train with the student."""

    def __init__(self, terms: Sequence[Term]) -> None:
        super().__init__()
        self._terms = list(terms)
        # registered by position: the name of a loss may contain dots, and a module's may not
        self.losses = nn.ModuleList(term.module for term in terms if term.module is not None)

    @property
    def names(self) -> list[str]:
        """Names of the losses' metrics."""
        return [term.name for term in self._terms]

    @property
    def spelled(self) -> list[str]:
        """Canonical texts of the losses, with everything that decides their values."""
        return [term.identity for term in self._terms]

    @property
    def written(self) -> list[Callable[..., Any]]:
        """Classes and functions that the names refer to."""
        return [term.written for term in self._terms]

    @property
    def taps(self) -> frozenset[str]:
        """Names of the features that the losses read."""
        return frozenset(tap for term in self._terms for tap in term.loss.taps)

    @property
    def student_modules(self) -> dict[str, str]:
        """Paths of student modules whose outputs are read, each with the name of a loss that reads the module."""
        return {path: term.name for term in self._terms for path in term.loss.student_modules}

    @property
    def beyond_logits(self) -> list[str]:
        """Names of losses that need more of the teacher than its logits: features, or outputs for other views."""
        return [term.name for term in self._terms if term.loss.taps or term.loss.asks_teacher]

    @property
    def binds(self) -> bool:
        """Whether a loss needs the networks themselves."""
        return any(term.loss.uses_networks for term in self._terms)

    @property
    def preparation(self) -> dict[str, int]:
        """Number of initial steps without gradient for the student, by the name of each loss that has some."""
        return {term.name: term.loss.preparation for term in self._terms if term.loss.preparation}

    @property
    def reads_kept(self) -> bool:
        """Whether a loss uses the class-dropping mask (`Outputs.kept`)."""
        return any(term.loss.reads_kept for term in self._terms)

    @property
    def reads_peers(self) -> list[str]:
        """Names of losses that learn from other students (`Outputs.peers`)."""
        return [term.name for term in self._terms if term.loss.reads_peers]

    @property
    def peers_every(self) -> int:
        """Number of steps between copies of the other students' weights: the largest that a loss requires."""
        return max((term.loss.peers_every for term in self._terms if term.loss.reads_peers), default=1)

    def setup(self, student: Outputs, teacher: Outputs, setting: Setting) -> None:
        """Give the losses the networks, and let them build their parameters from the outputs of a first batch."""
        for term in self._terms:
            term.prepare(student, teacher, setting)

    @torch.no_grad()
    def finish(self) -> None:
        """Finish the losses after the last step: some write parameters into the student."""
        for term in self._terms:
            term.finish()

    @property
    def has_exits(self) -> bool:
        """Whether a loss has heads at which the student could stop early."""
        return any(type(term.loss).exits is not Loss.exits for term in self._terms)

    @torch.no_grad()
    def exits(self, student: Outputs) -> list[Float[Tensor, "batch classes"]]:
        """Return the logits of the losses' heads, in evaluation mode."""
        self.eval()
        return [logits.float() for term in self._terms for logits in term.loss.exits(student)]

    @torch.no_grad()
    def check(self, student: Outputs, teacher: Outputs) -> None:
        """Try every loss on a batch. Raises: RequestError if a loss rejects the outputs or returns no single number."""
        for term in self._terms:
            term.check(student, teacher)

    def forward(
        self, student: Outputs, teacher: Outputs, of: int | None = None
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Compute the weighted total, and each loss before its weight, detached for the metrics.

        If several processes share a batch of `of` images, the outputs are those of this process's share. The mean over
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
        """Return the outputs of the whole batch, as far as losses that are not per image read them."""
        losses = [term.loss for term in self._terms if not term.loss.divisible]
        if not losses:
            return student, teacher
        taps = {tap for loss in losses for tap in (*loss.taps, *loss.student_modules)}
        view = any(loss.asks_teacher or loss.reads_view or _is_own(loss) for loss in losses)
        return gathered(student, of, taps), gathered(teacher, of, taps, view)


def _is_own(loss: Loss) -> bool:
    """Return whether the loss is code outside `dfkd`, which may read any part of the outputs."""
    return is_theirs(loss) or isinstance(loss, PlainLoss)


def build_objective(specs: Sequence[str]) -> Objective:
    """Build an Objective from `NAME[:WEIGHT][,key=value...]` texts.

    Without a WEIGHT, the loss has its own weight, or 1.

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
