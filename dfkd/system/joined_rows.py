"""Rows of several sequences that follow one another, such as the shards of a selection or the readers of a pool."""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Int, Int64


class JoinedRows:
    """The rows of sequences of given lengths, numbered through from the first sequence to the last."""

    def __init__(self, lengths: Iterable[int]) -> None:
        self._starts = np.cumsum([0, *lengths], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def split(
        self, rows: Int[np.ndarray, " batch"]
    ) -> Iterator[tuple[int, Int64[np.ndarray, " some"], Int64[np.ndarray, " some"]]]:
        """Yield each sequence that has some of the `rows`, in order: its number, and two arrays.

        The first array has the positions of its rows in `rows`, the second their numbers within the sequence.
        """
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        for owner in np.unique(owners).tolist():
            positions = np.flatnonzero(owners == owner)
            yield owner, positions, rows[positions] - self._starts[owner]
