"""Scores -> indices: a method ranks the usable rows, near-duplicates go, and `count` are picked, evenly on request.

Every row of the pool gets the reason for which it is in or out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

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
Features = Callable[[Int[np.ndarray, " rows"]], Float[np.ndarray, "rows width"]]


@dataclass(frozen=True)
class Choice:
    """What was picked: sorted pool indices, and for every pool row its position in `REASONS`."""

    indices: Int[np.ndarray, " selected"]
    reasons: Int[np.ndarray, " rows"]
    threshold: float | None
    admitted: int

    def counts(self) -> dict[str, int]:
        """How many pool rows there are of each reason."""
        return dict(zip(REASONS, np.bincount(self.reasons, minlength=len(REASONS)).tolist(), strict=True))


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
    if usable == 0:
        raise RequestError("no image of the pool can be used: none is readable with a finite score")
    ranking = _ranked(scores, finite, method, np.random.default_rng(seed))
    rows = ranking.rows
    admitted = len(rows)
    reasons[rows] = REASONS.index(NOT_DRAWN)
    if deduplicate is not None:
        dropped = near_duplicates(features(rows), deduplicate)
        reasons[rows[dropped]] = REASONS.index(NEAR_DUPLICATE)
        rows = rows[~dropped]
    wanted = min(max(usable // 2, 1), len(rows)) if count is None else count
    if wanted > len(rows):
        raise TooFew(wanted, len(rows), admitted, usable)
    if balance == "none":
        rows = rows[:wanted]
    else:
        rows = rows[: len(rows) if reach is None else math.ceil(reach * wanted)]
        groups = scores.prediction[rows]
        if balance == "cluster":
            groups = clusters(features(rows), max(1, min(100, len(rows) // 40)), seed)
        rows = rows[pick_balanced(groups, wanted)]
    reasons[rows] = REASONS.index(SELECTED)
    return Choice(np.sort(rows), reasons, ranking.threshold, admitted)


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
