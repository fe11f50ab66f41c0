"""Save and restore torch's global random state: one process may run several trainings, and code of its caller."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def states(device: torch.device) -> list[Tensor]:
    """Return the current states of torch's CPU generator and, on CUDA, of the device's generator."""
    return [get() for get, _ in _generators(device)]


def restore(device: torch.device, saved: Sequence[Tensor]) -> None:
    """Set torch's random generators to states that `states` returned."""
    for (_, put), state in zip(_generators(device), saved, strict=True):
        put(state)


@contextmanager
def kept(seed: int | None = None) -> Iterator[None]:
    """Restore torch's random state after the block. The block begins with `seed`, if it is given."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)):
        if seed is not None:
            torch.manual_seed(seed)
        yield


class Turn:
    """A random state of its own for one of several trainings in a process.

    The state begins as a copy of torch's current state.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._states = device, states(device)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Use the saved random state within the block, and save the state that the block leaves."""
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
