"""The weighted sum of losses, as written in `--loss kd explicit:0.5 relation:1`."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.distill.setting import Setting
from dfkd.models.features.outputs import Outputs
from dfkd.system import names
from dfkd.system.errors import RequestError
from dfkd.system.foreign import Foreign

LOSSES = ["dfkd.distill.losses"]
_UNFIT = (TypeError, AttributeError, KeyError)
"""What a loss raises for outputs that lack what it reads."""


class Objective(nn.Module):
    """Named losses and their weights. The parameters of the losses train with the student."""

    def __init__(
        self, terms: Sequence[tuple[str, float, Callable[[Outputs, Outputs], Tensor]]], spelled: Sequence[str]
    ) -> None:
        """Sum `terms` (name, weight, loss); `spelled` writes them canonically, with everything that decides them."""
        super().__init__()
        self._terms, self.spelled = list(terms), list(spelled)
        # registered under positions: a loss's own name may hold dots, which module names may not
        self.losses = nn.ModuleList(loss for _, _, loss in terms if isinstance(loss, nn.Module))

    @property
    def parts(self) -> list[Callable[[Outputs, Outputs], Tensor]]:
        """The losses themselves."""
        return [loss for _, _, loss in self._terms]

    @property
    def taps(self) -> frozenset[str]:
        """The features that the losses read."""
        return frozenset(tap for _, _, loss in self._terms for tap in getattr(loss, "taps", ()))

    @property
    def beyond_logits(self) -> list[str]:
        """The losses, by name, that need more of the teacher than its logits: features, or answers to other views."""
        return [n for n, _, loss in self._terms if getattr(loss, "taps", ()) or getattr(loss, "asks_teacher", False)]

    @property
    def binds(self) -> bool:
        """Whether a loss asks for the networks themselves."""
        return any(hasattr(loss, "bind") for _, _, loss in self._terms)

    @property
    def preparation(self) -> dict[str, int]:
        """The losses, by name, that begin with so many steps for layers of their own: they teach nothing meanwhile."""
        return {n: loss.preparation for n, _, loss in self._terms if hasattr(loss, "preparation")}

    @property
    def reads_kept(self) -> bool:
        """Whether a loss heeds the classes that are dropped (`Outputs.kept`)."""
        return any(getattr(loss, "reads_kept", False) for _, _, loss in self._terms)

    def setup(self, student: Outputs, teacher: Outputs, setting: Setting) -> None:
        """Show the losses the networks, and let them build their parameters from the outputs of a first batch."""
        for name, _, loss in self._terms:
            if hasattr(loss, "bind"):
                with _code(name, loss):
                    loss.bind(setting)
            if hasattr(loss, "setup"):
                with _code(name, loss):
                    loss.setup(student, teacher)

    @torch.no_grad()
    def finish(self) -> None:
        """After the last step: losses whose parameters become part of the student put them there."""
        for name, _, loss in self._terms:
            if hasattr(loss, "finish"):
                with _code(name, loss):
                    loss.finish()

    @torch.no_grad()
    def check(self, student: Outputs, teacher: Outputs) -> None:
        """Try every loss on a batch. Raises: RequestError for one that does not take outputs or gives no number."""
        for name, _, loss in self._terms:
            what = f"--loss {name} cannot take the outputs of student and teacher:"
            try:
                with Foreign(what, loss):
                    value = loss(student, teacher)
            except _UNFIT as error:  # of our own losses another error is a defect
                raise RequestError(f"{what} {error}") from error
            if not isinstance(value, Tensor) or value.numel() != 1:
                found = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise RequestError(f"--loss {name} gives {found}, not one number as a tensor")

    def forward(self, student: Outputs, teacher: Outputs) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The total, and each loss before its weight (detached, for the metrics)."""
        total = student.logits.new_zeros(())
        values = {}
        for name, weight, loss in self._terms:
            with _code(name, loss):
                value = loss(student, teacher)
            total = total + weight * value
            values[name] = value.detach()
        return total, values


def _code(name: str, loss: object) -> Foreign:
    return Foreign(f"--loss {name} fails:", loss)


def build_objective(specs: Sequence[str]) -> Objective:
    """An Objective from `NAME[:WEIGHT][,key=value...]` texts; a weight that is not written is the loss's own, or 1.

    Raises: RequestError for no loss at all, an unknown one, or two weights.
    """
    terms: list[tuple[str, float, Callable[[Outputs, Outputs], Tensor]]] = []
    spelled = []
    for spec in specs:
        named = names.parse(spec)
        if len(named.numbers) > 1:
            raise RequestError(f"--loss {spec!r} has {len(named.numbers)} weights; write one number")
        target = names.find(named.name, LOSSES, "loss")
        weight = named.numbers[0] if named.numbers else float(getattr(target, "weight", 1.0))
        if not 0 <= weight < math.inf:
            raise RequestError(f"--loss {spec!r}: the weight {weight:g} is not at least 0")
        given = () if isinstance(target, type) else ("student", "teacher")
        named = names.spelled(target, replace(named, numbers=()), "loss", given)
        if isinstance(target, type):
            loss = names.build(target, named, "loss")
        else:
            loss = functools.partial(target, **named.options)
        again = sum(name.partition("#")[0] == named.name for name, _, _ in terms)
        name = f"{named.name}#{again + 1}" if again else named.name
        terms.append((name, weight, loss))
        spelled.append(names.with_code(target, replace(named, numbers=(weight,))))
    if not terms:
        raise RequestError("--loss names no loss; kd is the usual one")
    return Objective(terms, spelled)
