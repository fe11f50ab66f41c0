"""Copies of the students with the weights of earlier steps, for losses that learn from old predictions."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.models.classifier import answer
from dfkd.models.features.taps import Tapped, network_code
from dfkd.system.device import Place
from dfkd.system.shares import take_from_first


class StaleCopies:
    """Copies of all students, one set for each interval in steps that a loss requires."""

    def __init__(self, every: Iterable[int], place: Place) -> None:
        """Keep the intervals `every`, in steps. An interval of 1 means the students themselves and needs no copies."""
        self._every, self._place = sorted({steps for steps in every if steps > 1}), place
        self._copies: dict[int, list[Tapped]] = {}

    @torch.no_grad()
    def answers(
        self, students: Sequence[nn.Module], view: Float[Tensor, "batch channels height width"], step: int
    ) -> dict[int, list[Float[Tensor, "batch classes"]]]:
        """Return the logits of the copies for a view, by interval; copy the students first where a copy is due."""
        said = {}
        for every in self._every:
            if step % every == 0 or every not in self._copies:
                self._copies[every] = [_copied(student) for student in students]
            said[every] = [answer(network, self._place, view).logits for network in self._copies[every]]
        return said

    def state_of(self, number: int) -> dict[str, Any]:
        """Return the copies of one student, for its checkpoint; empty if there are none."""
        states = {str(every): found[number].module.state_dict() for every, found in self._copies.items()}
        return {"stale": states} if states else {}

    def load(self, students: Sequence[nn.Module], states: Sequence[Mapping[str, Any]]) -> None:
        """Restore the copies from the checkpoints' states, one for each student."""
        for every in self._every:
            found = [state.get("stale", {}).get(str(every)) for state in states]
            if all(one is not None for one in found):
                self._copies[every] = [_copied(student) for student in students]
                for network, state in zip(self._copies[every], found, strict=True):
                    network.module.load_state_dict(state)


def _copied(student: nn.Module) -> Tapped:
    """Return a copy in evaluation mode, which updates no statistics and draws no random numbers.

    With several processes, all have the running statistics of rank 0, which a checkpoint holds.
    """
    with network_code(student):
        module = copy.deepcopy(student).eval().requires_grad_(False)
    take_from_first(module.buffers())
    return Tapped(module, {})
