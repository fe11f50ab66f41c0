"""Choice of images by their scores: a method ranks, near-duplicates are removed, and `count` images are picked.

Every row of the pool gets a reason why it is selected or not.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from dfkd.select.balance import pick_balanced
from dfkd.select.diversity import clusters, near_duplicates
from dfkd.select.methods import ImageScores, Ranking
from dfkd.system.errors import RequestError

REASONS = ("selected", "unreadable", "non_finite", "not_admitted", "near_duplicate", "not_drawn")
SELECTED, UNREADABLE, NON_FINITE, NOT_ADMITTED, NEAR_DUPLICATE, NOT_DRAWN = range(len(REASONS))
"""Positions in `REASONS`."""
Method = Callable[[ImageScores, np.random.Generator], Ranking]
"""Selection method with its parameters set."""
_BLOCK = 65_536
Features = Callable[[Int[np.ndarray, " rows"]], Float[np.ndarray, "rows width"]]
"""Function from pool rows to the teacher's penultimate features."""
Copies = Callable[[Int[np.ndarray, " rows"], int | None], Bool[np.ndarray, " rows"]]
"""Function from ranked rows, and the number of them that is needed, to a mask of near-copies (`near_copies`)."""


@dataclass(frozen=True)
class Choice:
    """The rows of a pool that are selected, and the reason for every row."""

    reasons: Int[np.ndarray, " rows"]
    """Position in `REASONS`, for every row of the pool."""
    threshold: float | None
    """Smallest confidence that was admitted, if the method has a threshold."""
    admitted: int
    """Number of rows that the method admits."""
    repeated: int = 0
    """Number of near-copies that are selected, because too few other rows are left."""

    @property
    def indices(self) -> Int[np.ndarray, " selected"]:
        """Rows that are selected, sorted."""
        return np.flatnonzero(self.reasons == SELECTED)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def some(self, start: int, stop: int) -> Int[np.ndarray, " some"]:
        """Return the `start`-th to the `stop`-th selected row, without a list of all selected rows."""
        stop = min(stop, len(self))
        if start >= stop:
            return np.empty(0, np.int64)
        first, last = (np.searchsorted(self._ends, [start, stop - 1], side="right") - 1).tolist()
        rows = first * _BLOCK + np.flatnonzero(self._is_selected(first * _BLOCK, (last + 1) * _BLOCK))
        return rows[start - self._ends[first] : stop - self._ends[first]]

    @cached_property
    def _ends(self) -> Int[np.ndarray, " ends"]:
        """Number of selected rows before each block, and in total."""
        starts = range(0, len(self.reasons), _BLOCK)
        return np.cumsum([0, *(np.count_nonzero(self._is_selected(start, start + _BLOCK)) for start in starts)])

    def _is_selected(self, start: int, stop: int) -> Bool[np.ndarray, " rows"]:
        return self.reasons[start:stop] == SELECTED

    def counts(self) -> dict[str, int]:
        """Return the number of pool rows for each reason."""
        found = sum(
            np.bincount(self.reasons[start : start + _BLOCK], minlength=len(REASONS))
            for start in range(0, len(self.reasons), _BLOCK)  # bincount makes a copy of 8 bytes per row
        )
        return dict(zip(REASONS, np.asarray(found).tolist(), strict=True))


def choose(
    scores: ImageScores,
    readable: Bool[np.ndarray, " rows"],
    method: Method,
    *,
    count: int | None,
    seed: int,
    features: Features,
    balance: str = "none",
    deduplicate: float | None = None,
    copies: Copies | None = None,
    reach: float | None = None,
) -> Choice:
    """Pick `count` rows. None picks half of the usable rows, or all that are left if those are fewer.

    `features` returns the teacher's penultimate features of pool rows, and is called only if they are needed. `copies`
    finds near-copies by their pixels among ranked rows. They are picked only if fewer than `count` others are left.
    With `reach`, a balanced pick considers only the best `reach * count` rows.
    Raises: RequestError if no row is usable, or the method admits none. TooFew if fewer than `count` rows are left.
    """
    reasons = np.full(len(readable), NOT_ADMITTED, dtype=np.int8)
    finite = np.isfinite(scores.confidence) & np.isfinite(scores.entropy)
    reasons[~finite] = NON_FINITE
    reasons[~readable] = UNREADABLE
    finite &= readable
    usable = int(finite.sum())
    check_usable(usable)
    ranking = _ranked(scores, finite, method, np.random.default_rng(seed))
    rows, repeated = ranking.rows, np.empty(0, np.int64)
    admitted = len(rows)
    check_admitted(admitted, usable)
    reasons[rows] = NOT_DRAWN
    if deduplicate is not None:
        dropped = near_duplicates(features(rows), deduplicate)
        reasons[rows[dropped]] = NEAR_DUPLICATE
        rows = rows[~dropped]
    if copies is not None:
        aim = aimed(count, len(rows), usable)
        within = None if reach is None else math.ceil(reach * aim)
        copied = copies(rows, aim if balance == "none" else within)
        reasons[rows[copied]] = NEAR_DUPLICATE
        missing = 0 if count is None else max(0, count - int((~copied).sum()))
        repeated = rows[copied][:missing]
        rows = np.concatenate([rows[~copied], repeated])
    wanted = how_many(count, len(rows), admitted, usable)
    if balance == "none":
        rows = rows[:wanted]
    else:
        rows = rows[: len(rows) if reach is None else math.ceil(reach * wanted)]
        groups = scores.prediction[rows]
        if balance == "cluster":
            groups = clusters(features(rows), max(1, min(100, len(rows) // 40)), seed)
        rows = rows[pick_balanced(groups, wanted)]
    reasons[rows] = SELECTED
    return Choice(reasons, ranking.threshold, admitted, len(repeated))


def check_usable(images: int) -> None:
    """Raise RequestError if none of the images is usable."""
    if images == 0:
        raise RequestError("no image of the pool can be used: none is readable with a finite score")


def check_admitted(images: int, usable: int) -> None:
    """Raise RequestError if none of the usable images is admitted: a selection has an image or more."""
    if images == 0:
        raise RequestError(f"the method admits none of {usable} usable images")


def aimed(count: int | None, left: int, usable: int) -> int:
    """Return how many rows are requested: `count`, or by default half of the usable rows, as far as they are left."""
    return min(max(usable // 2, 1), left) if count is None else count


def how_many(count: int | None, left: int, admitted: int, usable: int) -> int:
    """Return how many of the rows that are left are picked. Raises: TooFew if more are requested."""
    wanted = aimed(count, left, usable)
    if wanted > left:
        raise TooFew(wanted, left, admitted, usable)
    return wanted


def _ranked(
    scores: ImageScores, usable: Bool[np.ndarray, " rows"], method: Method, rng: np.random.Generator
) -> Ranking:
    """Rank the usable rows by the method, and number them within the pool."""
    # usually all rows are usable: for a large pool, copies of scores and rows would need the most memory
    where = None if usable.all() else np.flatnonzero(usable)
    known = [column for column in vars(scores).values() if column is not None]
    columns = [column.view() if where is None else column[where] for column in known]
    for view in columns if where is None else ():
        view.flags.writeable = False  # a user's method that sorts in place would spoil the scores
    ranking = method(ImageScores(*columns), rng)
    if not isinstance(ranking, Ranking):
        raise RequestError(
            f"the method gives a {type(ranking).__name__}, not a dfkd.select.methods.Ranking; return Ranking(rows)"
        )
    rows = _checked(np.asarray(ranking.rows), len(columns[0]))  # a user's method may return a mask
    return Ranking(rows if where is None else where[rows], ranking.threshold)


def _checked(rows: np.ndarray, images: int) -> Int[np.ndarray, " ranked"]:
    """Return a method's rows as numbers. Raises: RequestError for rows out of range, or repeated rows."""
    if rows.dtype == bool and rows.shape == (images,):
        return np.flatnonzero(rows)
    within = rows.ndim == 1 and (len(rows) == 0 or (rows.dtype.kind in "iu" and 0 <= rows.min() <= rows.max() < images))
    seen = np.zeros(images, dtype=bool)
    if within:
        seen[rows.astype(np.int64)] = True
    if not within or np.count_nonzero(seen) != len(rows):
        raise RequestError(f"the method ranks rows that are not different numbers from 0 to {images - 1}, or a mask")
    return rows.astype(np.int64, copy=False)


class TooFew(RequestError):
    """An error: more images were requested than are left. The caller names the option to change."""

    def __init__(self, wanted: int, left: int, admitted: int, usable: int) -> None:
        self.wanted, self.left, self.admitted, self.usable = wanted, left, admitted, usable
        removed = "" if left == admitted else f" ({admitted} before near-duplicates were removed)"
        super().__init__(f"count={wanted} is above the {left} images that are left{removed} of {usable} usable ones")
