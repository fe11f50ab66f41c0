"""An order of stored images that follows the student, and repeats those with the largest divergence."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dfkd.system.limits import SHARE


class HardestOrder:
    """Rounds of the images with the largest divergence of the student from the teacher when last seen.

    The first round has all images. Each later round has the `share` of images with the largest values, shuffled. An
    image that is left out keeps its value, and returns once enough other values have fallen below. Online batch
    selection for faster training of neural networks, 2015, https://arxiv.org/abs/1511.06343, also ranks by the latest
    known loss. It draws every batch with a probability that falls exponentially with the rank. The cut by rounds is our
    own. Unlike orders that a seed alone decides, this order only goes forward, and its `state_dict` is part of the
    position.
    """

    def __init__(self, images: int, share: float, seed: int) -> None:
        """Start an order of `images` rows. Raises: RequestError unless 0 < share <= 1."""
        SHARE.check(share=share)
        self._size, self._seed = max(1, round(share * images)), seed
        # images that were not seen yet come first
        self._values = np.full(images, np.finfo(np.float32).max, dtype=np.float32)
        self._told: list[tuple[Int[np.ndarray, " batch"], Float[Tensor, " batch"]]] = []
        self._number, self._start = 0, 0
        self._round = self._shuffled(np.arange(images))

    def rows(self, position: int, count: int) -> Int[np.ndarray, " count"]:
        """Return the rows at `count` positions from `position` on, which must be where the last call ended."""
        parts = [np.empty(0, dtype=np.int64)]
        while count:
            if position == self._start + len(self._round):
                self._read()
                self._number, self._start = self._number + 1, position
                self._round = self._shuffled(np.argsort(-self._values, kind="stable")[: self._size])
            parts.append(self._round[position - self._start :][:count])
            position, count = position + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts)

    def seen(self, rows: Int[np.ndarray, " batch"], values: Float[Tensor, " batch"]) -> None:
        """Record the divergence of these rows. Values on a device are read when the next round is drawn."""
        self._told.append((rows, values))

    def state_dict(self) -> dict[str, Any]:
        """Return the round, and the value of every image."""
        self._read()
        arrays = {"round": torch.from_numpy(self._round), "values": torch.from_numpy(self._values.copy())}
        return {"number": self._number, "start": self._start, **arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from `state_dict`."""
        self._number, self._start = int(state["number"]), int(state["start"])
        self._round, self._values = state["round"].numpy(), state["values"].numpy().copy()
        self._told.clear()

    def _read(self) -> None:
        if self._told:
            rows, values = zip(*self._told, strict=True)
            # for a row seen twice, the last value counts
            self._values[np.concatenate(rows)] = torch.cat(values).cpu().numpy()
            self._told.clear()

    def _shuffled(self, rows: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
        return np.random.default_rng([self._seed, self._number]).permutation(rows)
