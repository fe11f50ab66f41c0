"""Scores of a pool on disk: files of parts in the cache, written once and read by selections and pages."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from dfkd.models.features.taps import Tap
from dfkd.select.methods import ImageScores
from dfkd.system.checked_parquet import Columns, Damaged, read_columns, write_columns
from dfkd.system.errors import RequestError
from dfkd.system.files import hash_of

SCORE_FORMAT = 3
PART_ROWS = 16_384
"""Images per part. A killed scoring resumes from its last complete part, an interrupted one from its last batch."""
SCORES = {"confidence": np.float32, "entropy": np.float32, "prediction": np.int32, "distance": np.float32}
"""Columns of `ImageScores`, in its order, with their dtypes."""


@dataclass(frozen=True)
class PoolScores:
    """The scores of a whole pool, which stay on disk until they are read."""

    folder: Path
    tap: Tap | None
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
            scores = self._part(part)
            for name in SCORES:
                getattr(whole, name)[part * PART_ROWS : (part + 1) * PART_ROWS] = getattr(scores, name)
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
        order = np.argsort(indices, kind="stable")
        blocks = [
            _stored(features_file(self.folder, part, self.tap), ("features",))["features"][rows]
            for part, rows in _by_part(indices[order])
        ]
        return np.concatenate(blocks)[np.argsort(order, kind="stable")]

    def _part(self, part: int) -> ImageScores:
        return ImageScores(**_stored(scores_file(self.folder, part), tuple(SCORES)))


def parts_of(images: int) -> int:
    """Return the number of parts for a number of images."""
    return -(-images // PART_ROWS)


def rows_of(images: int, part: int) -> range:
    """Return the pool indices of a part."""
    return range(part * PART_ROWS, min((part + 1) * PART_ROWS, images))


def scores_file(folder: Path, part: int, head: bool = False) -> Path:
    """Return the file of a part's scores, or with `head` of the first scores, left by an interrupted command."""
    return folder / f"scores-{part:06d}{'.head' if head else ''}.parquet"


def features_file(folder: Path, part: int, tap: Tap | None, head: bool = False) -> Path:
    """Return the file of a part's features that were taken at `tap`, or with `head` of the first of them."""
    return folder / f"features-{hash_of(str(tap))}-{part:06d}{'.head' if head else ''}.parquet"


def find_missing(
    folder: Path, parts: range, tap: Tap | None, images: int, problems: dict[int, str]
) -> tuple[list[int], int]:
    """Return the parts to score, and how many of them are damaged. `problems` gets those of the other parts."""
    todo, damaged = [], 0
    for part in parts:
        if not scores_file(folder, part).exists() or (tap and not features_file(folder, part, tap).exists()):
            todo.append(part)
            continue
        try:
            columns = read_columns(scores_file(folder, part), (*SCORES, "problem"))
            if len(columns["confidence"]) != len(rows_of(images, part)):
                raise Damaged(f"{scores_file(folder, part)} has other rows")
        except Damaged:
            todo.append(part)
            damaged += 1
            continue
        problems |= problems_of(part, columns)
    return todo, damaged


def read_head(folder: Path, part: int, tap: Tap | None, batch_size: int) -> Columns:
    """Return what an interrupted command left of a part; empty if that is not whole batches.

    With whole batches, the later batches have the same images as without an interruption.
    """
    try:
        head = read_columns(scores_file(folder, part, True), (*SCORES, "problem", "logits"))
        if tap:
            head |= read_columns(features_file(folder, part, tap, True), ("features",))
    except Damaged:  # or missing
        return {}
    rows = {len(values) for values in head.values()}
    return head if len(rows) == 1 and rows.pop() % batch_size == 0 else {}


def write_part(folder: Path, part: int, columns: Columns, tap: Tap | None, head: bool) -> None:
    """Write a part's scores, or the first of them if `head`.

    Features are written first, because a part is complete once it has both.
    """
    if tap:
        write_columns(features_file(folder, part, tap, head), {"features": columns["features"]})
    # in one order, also if the first batches were read from a file
    write_columns(scores_file(folder, part, head), {name: columns[name] for name in (*SCORES, "logits", "problem")})
    if not head:
        for file in (scores_file(folder, part, True), features_file(folder, part, tap, True)):
            file.unlink(missing_ok=True)


def problems_of(part: int, columns: Columns) -> dict[int, str]:
    """Return why images of a part could not be read, by pool index."""
    return {part * PART_ROWS + i: why for i, why in enumerate(columns["problem"]) if why is not None}


def _stored(file: Path, names: tuple[str, ...]) -> Columns:
    """Read columns of a cached file. Raises: RequestError if the file is damaged."""
    try:
        return read_columns(file, names)
    except Damaged as damaged:
        raise RequestError(f"{damaged}; delete it, and the same command scores its images again") from None


def _by_part(indices: Int[np.ndarray, " picked"]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield sorted pool indices as (part, rows within the part)."""
    parts = indices // PART_ROWS
    for rows in np.split(indices, np.flatnonzero(np.diff(parts)) + 1):
        if len(rows):
            part = int(rows[0]) // PART_ROWS
            yield part, rows - part * PART_ROWS
