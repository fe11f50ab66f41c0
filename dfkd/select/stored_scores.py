"""Files of a pool's scores in the cache: the teacher's answers in parts of so many images each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from dfkd.select.methods import ImageScores
from dfkd.system.checked_parquet import Columns, Damaged, read_columns
from dfkd.system.errors import RequestError
from dfkd.system.files import hash_of

PART_ROWS = 16_384
"""Images per part. A killed scoring resumes from its last complete part, an interrupted one from its last batch."""
SCORES = {"confidence": np.float32, "entropy": np.float32, "prediction": np.int32, "distance": np.float32}
"""Columns of `ImageScores`, in its order, with their dtypes."""
STORED = (*SCORES, "logits", "cells", "problem")
"""Columns of a part's file, in its order."""


@dataclass(frozen=True)
class PoolScores:
    """The scores of a whole pool, which stay on disk until they are read."""

    folder: Path
    tap: str | None
    """Tap of the stored features."""
    rows: int
    problems: dict[int, str]
    """Reason why an image could not be read, by pool index."""

    @property
    def readable(self) -> Bool[np.ndarray, " rows"]:
        """Mask of the images that could be read."""
        flags = np.ones(self.rows, dtype=bool)
        flags[list(self.problems)] = False
        return flags

    @property
    def images(self) -> ImageScores:
        """Scores of the whole pool, read into memory: 16 bytes per image."""
        whole = ImageScores(*(np.empty(self.rows, kind) for kind in SCORES.values()))
        for part in range(parts_of(self.rows)):
            scores, rows = self._part(part), range_of(self.rows, part)
            for name in SCORES:
                getattr(whole, name)[rows.start : rows.stop] = getattr(scores, name)
        return whole

    def parts(self) -> Iterator[tuple[ImageScores, Bool[np.ndarray, " rows"]]]:
        """Yield the scores of each part, and a mask of the images that could be read."""
        unreadable = np.array(sorted(self.problems), dtype=np.int64)
        for part in range(parts_of(self.rows)):
            scores = self._part(part)
            readable = np.ones(len(scores.confidence), dtype=bool)
            first, last = np.searchsorted(unreadable, [part * PART_ROWS, (part + 1) * PART_ROWS])
            readable[unreadable[first:last] - part * PART_ROWS] = False
            yield scores, readable

    def at(self, indices: Int[np.ndarray, " picked"]) -> ImageScores:
        """Return the scores of sorted pool indices."""
        parts = [(self._part(part), rows) for part, rows in _by_part(indices)]
        return ImageScores(
            *(np.concatenate([getattr(scores, name)[rows] for scores, rows in parts]) for name in SCORES)
        )

    def logits(self, indices: Int[np.ndarray, " picked"]) -> Float[np.ndarray, "picked classes"]:
        """Return the teacher's float16 logits of sorted pool indices."""
        parts = [_stored(scores_file(self.folder, p), ("logits",))["logits"][rows] for p, rows in _by_part(indices)]
        return np.concatenate(parts)

    def features(self, indices: Int[np.ndarray, " picked"]) -> Float[np.ndarray, "picked width"]:
        """Return the teacher's float16 penultimate features of pool indices in any order."""
        assert self.tap is not None
        tap = self.tap
        return _in_order(indices, "features", lambda part: features_file(self.folder, part, tap))

    def cells(self, indices: Int[np.ndarray, " picked"]) -> Float[np.ndarray, "picked cells"]:
        """Return the float16 luminances by which near-copies are found, of pool indices in any order."""
        return _in_order(indices, "cells", lambda part: scores_file(self.folder, part))

    def _part(self, part: int) -> ImageScores:
        return ImageScores(**_stored(scores_file(self.folder, part), tuple(SCORES)))


def parts_of(images: int) -> int:
    """Return the number of parts for a number of images."""
    return -(-images // PART_ROWS)


def range_of(images: int, part: int) -> range:
    """Return the pool indices of a part."""
    return range(part * PART_ROWS, min((part + 1) * PART_ROWS, images))


def scores_file(folder: Path, part: int, head: bool = False) -> Path:
    """Return the file of a part's scores, or with `head` of the first scores, left by an interrupted command."""
    return folder / f"scores-{part:06d}{'.head' if head else ''}.parquet"


def features_file(folder: Path, part: int, tap: str, head: bool = False) -> Path:
    """Return the file of a part's features that were taken at `tap`, or with `head` of the first of them."""
    return folder / f"features-{hash_of(tap)}-{part:06d}{'.head' if head else ''}.parquet"


def _stored(file: Path, names: tuple[str, ...]) -> Columns:
    """Read columns of a cached file. Raises: RequestError if the file is damaged."""
    try:
        return read_columns(file, names)
    except Damaged as damaged:
        raise RequestError(f"{damaged}; delete it, and the same command scores its images again") from None


def _in_order(
    indices: Int[np.ndarray, " picked"], column: str, file: Callable[[int], Path]
) -> Float[np.ndarray, "picked width"]:
    """Return a column of pool indices in any order. `file` returns the file of a part."""
    order = np.argsort(indices, kind="stable")
    blocks = [_stored(file(part), (column,))[column][rows] for part, rows in _by_part(indices[order])]
    return np.concatenate(blocks)[np.argsort(order, kind="stable")]


def _by_part(indices: Int[np.ndarray, " picked"]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield sorted pool indices as (part, rows within the part)."""
    parts = indices // PART_ROWS
    for rows in np.split(indices, np.flatnonzero(np.diff(parts)) + 1):
        if len(rows):
            part = int(rows[0]) // PART_ROWS
            yield part, rows - part * PART_ROWS
