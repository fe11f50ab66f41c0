"""Where batches come from. The training loop knows nothing of a source but this interface.

A generator that learns along with the student is a source too: its `update` is the generator's step.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from dfkd.distill.sampling import Order
from dfkd.shards import Shards


@dataclass(frozen=True)
class Batch:
    """Images on the processor, and which stored image each one is; None where they are not stored."""

    pixels: UInt8[Tensor, "batch height width channels"]
    rows: Int[Tensor, " batch"] | None


@runtime_checkable
class Source(Protocol):
    """Images to learn on."""

    @property
    def images(self) -> int | None:
        """How many there are: rows of a batch are below it. None where they are not stored."""
        ...

    def sample(self, count: int) -> Batch:
        """The next `count` images."""
        ...

    def update(self, student: nn.Module) -> dict[str, float]:
        """What the source does after a step of the student, and its metrics; nothing for stored images."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on with the same images."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        ...


class ShardSource:
    """The images of one or more selections, one behind the other, in an endless order; every batch is full.

    Where images have to be decoded, the next batch is prepared while the student learns from this one.
    """

    def __init__(self, selections: Sequence[Shards], order: Order) -> None:
        self._selections, self._order, self._position = list(selections), order, 0
        self._starts = np.cumsum([0, *map(len, selections)])
        self._reader = ThreadPoolExecutor(1) if any(shards.encoded for shards in selections) else None
        self._ahead: tuple[int, int, Future[Batch]] | None = None

    @property
    def images(self) -> int:
        """The images of all selections together."""
        return int(self._starts[-1])

    def sample(self, count: int) -> Batch:
        """The next `count` images."""
        position, self._position = self._position, self._position + count
        if self._reader is None:
            return self._batch(position, count)
        ready, self._ahead = self._ahead, None
        batch = ready[2].result() if ready and ready[:2] == (position, count) else self._batch(position, count)
        self._ahead = (self._position, count, self._reader.submit(self._batch, self._position, count))
        return batch

    def update(self, student: nn.Module) -> dict[str, float]:
        """Stored images do not follow the student."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The position in the endless order."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position."""
        self._position = int(state["position"])

    def _batch(self, position: int, count: int) -> Batch:
        rows = self._order.rows(position, count)
        return Batch(torch.from_numpy(self._pixels(rows)), torch.from_numpy(rows))

    def _pixels(self, rows: Int[np.ndarray, " batch"]) -> UInt8[np.ndarray, "batch height width channels"]:
        which = np.searchsorted(self._starts, rows, side="right") - 1
        parts = []
        for number in np.unique(which):
            where = np.flatnonzero(which == number)
            parts.append((where, self._selections[number].pixels(rows[where] - self._starts[number])))
        if len(parts) == 1:
            return parts[0][1]
        out = np.empty((len(rows), *parts[0][1].shape[1:]), dtype=np.uint8)
        for where, pixels in parts:
            out[where] = pixels
        return out
