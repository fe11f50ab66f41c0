"""torch's random state, which is one for the whole process: who takes turns with others keeps their own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def states(device: torch.device) -> list[Tensor]:
    """The state as it is: of the processor and, where that is another one, of the device."""
    return [get() for get, _ in _generators(device)]


def restore(device: torch.device, saved: Sequence[Tensor]) -> None:
    """Make the state what it was."""
    for (_, put), state in zip(_generators(device), saved, strict=True):
        put(state)


class Turn:
    """One of several whose random numbers are drawn as if they were alone; its state is now what torch's is."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._states = device, states(device)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Within the block torch's state is this one's."""
        restore(self._device, self._states)
        try:
            yield
        finally:
            self._states = states(self._device)


def _generators(device: torch.device) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = [(torch.get_rng_state, torch.set_rng_state)]
    if device.type == "cuda":
        cuda = torch.cuda
        found.append((lambda: cuda.get_rng_state(device), lambda state: cuda.set_rng_state(state, device)))
    return found
