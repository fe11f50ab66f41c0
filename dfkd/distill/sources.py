"""Where batches come from. The training loop knows nothing of a source but this interface.

A generator that learns along with the student is a source too: its `update` is the generator's step.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from dfkd.shards import Shards


@runtime_checkable
class Source(Protocol):
    """Images to learn on."""

    def sample(self, count: int) -> UInt8[Tensor, "count height width channels"]:
        """The next `count` images, on the processor."""
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
    """The images of one or more selections, mixed: every epoch is a permutation of all of them drawn from the seed.

    A batch may reach into the next epoch, so that every batch is full. Where images have to be decoded, the next batch
    is prepared while the student learns from this one.
    """

    def __init__(self, selections: Sequence[Shards], seed: int) -> None:
        self._selections, self._seed, self._position = list(selections), seed, 0
        self._starts = np.cumsum([0, *map(len, selections)])
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)
        self._reader = ThreadPoolExecutor(1) if any(shards.encoded for shards in selections) else None
        self._ahead: tuple[int, int, Future[Tensor]] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def sample(self, count: int) -> UInt8[Tensor, "count height width channels"]:
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
        """The position in the endless stream of permutations."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position."""
        self._position = int(state["position"])

    def _batch(self, position: int, count: int) -> UInt8[Tensor, "count height width channels"]:
        rows = self._rows(position, count)
        which = np.searchsorted(self._starts, rows, side="right") - 1
        parts = []
        for number in np.unique(which):
            where = np.flatnonzero(which == number)
            parts.append((where, self._selections[number].pixels(rows[where] - self._starts[number])))
        if len(parts) == 1:
            return torch.from_numpy(parts[0][1])
        out = np.empty((count, *parts[0][1].shape[1:]), dtype=np.uint8)
        for where, pixels in parts:
            out[where] = pixels
        return torch.from_numpy(out)

    def _rows(self, position: int, count: int) -> Int[np.ndarray, " count"]:
        """The rows at some positions of the endless stream of permutations."""
        rows: list[np.ndarray] = []
        while count:
            epoch, offset = divmod(position, len(self))
            if epoch != self._epoch:
                self._epoch, self._order = epoch, np.random.default_rng([self._seed, epoch]).permutation(len(self))
            rows.append(self._order[offset : offset + count])
            position, count = position + len(rows[-1]), count - len(rows[-1])
        return np.concatenate(rows)
