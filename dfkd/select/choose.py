"""Scores -> indices: a method ranks the usable rows, near-duplicates go, and `count` are picked, evenly on request.

Every row of the pool gets the reason for which it is in or out.
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

SELECTED, UNREADABLE, NON_FINITE, NOT_ADMITTED, NEAR_DUPLICATE, NOT_DRAWN = REASONS = (
    "selected",
    "unreadable",
    "non_finite",
    "not_admitted",
    "near_duplicate",
    "not_drawn",
)
Method = Callable[[ImageScores, np.random.Generator], Ranking]
_BLOCK = 65_536
Features = Callable[[Int[np.ndarray, " rows"]], Float[np.ndarray, "rows width"]]


@dataclass(frozen=True)
class Choice:
    """What was picked: for every pool row its position in `REASONS`."""

    reasons: Int[np.ndarray, " rows"]
    threshold: float | None
    admitted: int

    @property
    def indices(self) -> Int[np.ndarray, " selected"]:
        """The rows that are selected, sorted."""
        return np.flatnonzero(self.reasons == REASONS.index(SELECTED))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def some(self, start: int, stop: int) -> Int[np.ndarray, " some"]:
        """The `start`-th to the `stop`-th of the selected rows, without a list of all of them."""
        stop = min(stop, len(self))
        if start >= stop:
            return np.empty(0, np.int64)
        first, last = (np.searchsorted(self._ends, [start, stop - 1], side="right") - 1).tolist()
        rows = first * _BLOCK + np.flatnonzero(self._is_selected(first * _BLOCK, (last + 1) * _BLOCK))
        return rows[start - self._ends[first] : stop - self._ends[first]]

    @cached_property
    def _ends(self) -> Int[np.ndarray, " ends"]:
        """How many rows are selected before each block, and in all."""
        starts = range(0, len(self.reasons), _BLOCK)
        return np.cumsum([0, *(np.count_nonzero(self._is_selected(start, start + _BLOCK)) for start in starts)])

    def _is_selected(self, start: int, stop: int) -> Bool[np.ndarray, " rows"]:
        return self.reasons[start:stop] == REASONS.index(SELECTED)

    def counts(self) -> dict[str, int]:
        """How many pool rows there are of each reason."""
        found = sum(
            np.bincount(self.reasons[start : start + _BLOCK], minlength=len(REASONS))
            for start in range(0, len(self.reasons), _BLOCK)  # bincount takes a copy of 8 bytes a row
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
    reach: float | None = None,
) -> Choice:
    """Pick `count` rows (None: half of the usable ones, or all that are left if that is less).

    `features` gives the teacher's penultimate features of pool rows; it is called only where they are needed. With
    `reach`, a balance picks among the best `reach * count` rows.
    Raises: RequestError when no row is usable, or fewer than `count` are left; it says how many there are.
    """
    reasons = np.full(len(readable), REASONS.index(NOT_ADMITTED), dtype=np.int8)
    finite = np.isfinite(scores.confidence) & np.isfinite(scores.entropy)
    reasons[~finite] = REASONS.index(NON_FINITE)
    reasons[~readable] = REASONS.index(UNREADABLE)
    finite &= readable
    usable = int(finite.sum())
    check_usable(usable)
    ranking = _ranked(scores, finite, method, np.random.default_rng(seed))
    rows = ranking.rows
    admitted = len(rows)
    reasons[rows] = REASONS.index(NOT_DRAWN)
    if deduplicate is not None:
        dropped = near_duplicates(features(rows), deduplicate)
        reasons[rows[dropped]] = REASONS.index(NEAR_DUPLICATE)
        rows = rows[~dropped]
    wanted = how_many(count, len(rows), admitted, usable)
    if balance == "none":
        rows = rows[:wanted]
    else:
        rows = rows[: len(rows) if reach is None else math.ceil(reach * wanted)]
        groups = scores.prediction[rows]
        if balance == "cluster":
            groups = clusters(features(rows), max(1, min(100, len(rows) // 40)), seed)
        rows = rows[pick_balanced(groups, wanted)]
    reasons[rows] = REASONS.index(SELECTED)
    return Choice(reasons, ranking.threshold, admitted)


def check_usable(images: int) -> None:
    """Raises: RequestError where none of the images can be used."""
    if images == 0:
        raise RequestError("no image of the pool can be used: none is readable with a finite score")


def how_many(count: int | None, left: int, admitted: int, usable: int) -> int:
    """How many to pick of those that are left. Raises: TooFew where more are requested."""
    wanted = min(max(usable // 2, 1), left) if count is None else count
    if wanted > left:
        raise TooFew(wanted, left, admitted, usable)
    return wanted


def _ranked(
    scores: ImageScores, usable: Bool[np.ndarray, " rows"], method: Method, rng: np.random.Generator
) -> Ranking:
    """The method's ranking of the usable rows, numbered within the pool."""
    columns = [column for column in vars(scores).values() if column is not None]
    if usable.all():  # nearly always; copies of the scores and of the rows would be the most that a large pool takes
        views = [column.view() for column in columns]
        for view in views:
            view.flags.writeable = False  # a method of one's own that sorts in-place would spoil what is written later
        ranking = _called(method, ImageScores(*views), rng)
        rows = np.asarray(ranking.rows)  # as indexing takes them: a method of one's own may give a mask
        return Ranking(_checked(rows, len(usable)), ranking.threshold)
    where = np.flatnonzero(usable)
    ranking = _called(method, ImageScores(*(column[where] for column in columns)), rng)
    return Ranking(where[_checked(np.asarray(ranking.rows), len(where))], ranking.threshold)


def _called(method: Method, scores: ImageScores, rng: np.random.Generator) -> Ranking:
    ranking = method(scores, rng)
    if not isinstance(ranking, Ranking):
        raise RequestError(f"the method gives a {type(ranking).__name__}, not a dfkd.select.methods.Ranking")
    return ranking


def _checked(rows: np.ndarray, images: int) -> Int[np.ndarray, " ranked"]:
    """A method's rows as numbers. Raises: RequestError for some that are none of the images, or that repeat."""
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
    """More images were requested than are left; holds the numbers, so that the caller can name the flag to change."""

    def __init__(self, wanted: int, left: int, admitted: int, usable: int) -> None:
        self.wanted, self.left, self.admitted, self.usable = wanted, left, admitted, usable
        removed = "" if left == admitted else f" ({admitted} before near-duplicates were removed)"
        super().__init__(f"count={wanted} is above the {left} images that are left{removed} of {usable} usable ones")
