"""Choice of images without the scores in memory: they are read part by part, once for every digit that is counted.

`choose` sorts, and this module counts. The value at a rank is found digit by digit (radix selection). Each pass takes
the values that share the digits found so far, and counts their next digit. The choice is that of `choose`, to the
image. It takes one byte per image, and tables of a fixed size. Counts of several parts can be added in any order.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32

from dfkd.select.balance import quotas
from dfkd.select.choose import (
    NEAR_DUPLICATE,
    NON_FINITE,
    NOT_ADMITTED,
    NOT_DRAWN,
    SELECTED,
    UNREADABLE,
    Choice,
    check_admitted,
    check_usable,
    how_many,
)
from dfkd.select.duplicates_on_disk import Ranked
from dfkd.select.methods import ImageScores, Scale, surest
from dfkd.system.errors import RequestError

IN_MEMORY = 10_000_000
"""Images up to which the scores of a pool are held in memory: 40 to 48 bytes per image."""
_COUNTERS = 20
"""Binary logarithm of the number of counters in a table: 8 MB. Fewer counters take more passes."""
Parts = Callable[[], Iterator[tuple[ImageScores, Bool[np.ndarray, " rows"]]]]
"""Function that reads the pool from its first part: the scores, and a mask of the images that could be read."""

Deduplicate = Callable[[Callable[[], Iterable[Ranked]], int], Iterator[Int[np.ndarray, " dropped"]]]
"""Function that yields the near-duplicates among a number of ranked rows, which are read block by block."""


class _Rows(NamedTuple):
    """Rows of a part in the pool's order: positions in the part, keys that rank them, and groups."""

    where: Int[np.ndarray, " rows"]
    keys: UInt32[np.ndarray, " rows"]
    group: Int[np.ndarray, " rows"]


@dataclass(frozen=True)
class _Cut:
    """For each group, the key at a rank, and how many rows of exactly that key are within: the first of the pool."""

    key: UInt32[np.ndarray, " groups"]
    ties: Int[np.ndarray, " groups"]

    def taker(self) -> Callable[[_Rows], Bool[np.ndarray, " rows"]]:
        """Return a function that gets all rows in the pool's order, and returns a mask of those within."""
        seen = np.zeros_like(self.ties)

        def take(rows: _Rows) -> Bool[np.ndarray, " rows"]:
            group = rows.group if len(seen) > 1 else np.zeros_like(rows.group)
            within = rows.keys > self.key[group]
            same = np.flatnonzero(rows.keys == self.key[group])
            of, counts = group[same], np.bincount(group[same], minlength=len(seen))
            by_group = np.argsort(of, kind="stable")
            rank = np.empty(len(of), np.int64)
            rank[by_group] = np.arange(len(of)) - (np.cumsum(counts) - counts)[of[by_group]]
            within[same] = rank + seen[of] < self.ties[of]
            seen[:] += counts
            return within

        return take


def choose_streaming(
    parts: Parts,
    rows: int,
    scale: Scale,
    *,
    count: int | None,
    seed: int,
    groups: int | None = None,
    reach: float | None = None,
    deduplicate: Sequence[Deduplicate] = (),
) -> Choice:
    """Return what `dfkd.select.choose.choose` picks of `rows` images, by a method with a scale.

    Each `deduplicate` finds near-duplicates among the admitted rows (`dfkd.select.duplicates_on_disk`). With `groups`,
    the number of the teacher's classes, the picks are balanced over the predicted classes. `reach` is as in `choose`.
    Raises: RequestError as `choose` does.
    """
    pool = _Pool(parts, scale, seed, groups or 1, np.full(rows, NOT_ADMITTED, dtype=np.int8))
    usable = sum(int(block.usable.sum()) for block in pool.blocks())
    check_usable(usable)
    if scale.gamma is not None:
        pool.admit(surest(scale.gamma, usable))
    sizes = pool.sizes()
    admitted = left = int(sizes.sum())
    if not admitted and scale.missing:
        raise RequestError(scale.missing)
    check_admitted(admitted, usable)
    for near_duplicates in deduplicate:
        for dropped in near_duplicates(pool.ranked, left):
            pool.reasons[dropped] = NEAR_DUPLICATE
        sizes = pool.sizes()
        left = int(sizes.sum())
    wanted = how_many(count, left, admitted, usable)
    if groups is not None and reach is not None and math.ceil(reach * wanted) < left:
        pool.narrow(np.array([math.ceil(reach * wanted)]))
        sizes = pool.sizes()
    pool.narrow(quotas(sizes, wanted))
    reasons = pool.reasons
    for block, within in pool.narrowed():
        some = reasons[block.start : block.start + len(block.usable)]
        some[~block.finite] = NON_FINITE
        some[~block.readable] = UNREADABLE
        some[pool.is_admitted(block)] = NOT_DRAWN
        some[within.where] = SELECTED
    return Choice(reasons, pool.threshold, admitted)


@dataclass(frozen=True)
class _Block:
    """A part of the pool: scores, and the values that rank the images."""

    start: int
    scores: ImageScores
    readable: Bool[np.ndarray, " rows"]
    finite: Bool[np.ndarray, " rows"]
    value: Float[np.ndarray, " rows"]

    @property
    def usable(self) -> Bool[np.ndarray, " rows"]:
        return self.finite & self.readable


class _Pool:
    """The pool, read again for every question. `admit` and then `narrow` reduce the rows that are left."""

    def __init__(self, parts: Parts, scale: Scale, seed: int, groups: int, reasons: Int[np.ndarray, " rows"]) -> None:
        """Start with all rows. `reasons`, of every row, mark near-duplicates."""
        self._parts, self._scale, self._seed, self._groups = parts, scale, seed, groups
        self.reasons = reasons
        self._cuts: list[_Cut] = []
        self.threshold: float | None = None

    def blocks(self) -> Iterator[_Block]:
        start = 0
        for number, (scores, readable) in enumerate(self._parts()):
            finite = np.isfinite(scores.confidence) & np.isfinite(scores.entropy)
            value = np.asarray(self._scale.value(scores, np.random.default_rng([self._seed, number])))
            if value.shape != finite.shape or value.dtype.kind not in "fiu":
                what = f"{value.dtype}{list(value.shape)} for {len(finite)} images"
                raise RequestError(f"the method's scale gives {what}, not one number for each image")
            yield _Block(start, scores, readable, finite, value)
            start += len(readable)

    def admit(self, count: int) -> None:
        """Admit the `count` most confident rows, and those as confident as the last of them."""

        def confidences() -> Iterator[_Rows]:
            for block in self.blocks():
                where = np.flatnonzero(block.usable)
                yield _Rows(where, _keys(block.scores.confidence[where]), np.zeros(len(where), np.int64))

        self.threshold = float(_numbers(_cut(confidences, np.array([count])).key)[0])

    def is_admitted(self, block: _Block) -> Bool[np.ndarray, " rows"]:
        """Return a mask of the rows of a block that are admitted."""
        reasons = self.reasons[block.start : block.start + len(block.usable)]
        admitted = block.usable & ~np.isnan(block.value) & (reasons != NEAR_DUPLICATE)
        return admitted if self.threshold is None else admitted & (block.scores.confidence >= self.threshold)

    def ranked(self) -> Iterator[Ranked]:
        """Yield the admitted rows by their numbers in the pool, with their keys."""
        for block in self.blocks():
            where = np.flatnonzero(self.is_admitted(block))
            yield block.start + where, _keys(block.value[where])

    def narrowed(self) -> Iterator[tuple[_Block, _Rows]]:
        """Yield each block with the rows that are left."""
        takers = [cut.taker() for cut in self._cuts]
        for block in self.blocks():
            where = np.flatnonzero(self.is_admitted(block))
            group = block.scores.prediction[where] if self._groups > 1 else np.zeros(len(where))
            rows = _Rows(where, _keys(block.value[where]), group.astype(np.int64))
            for take in takers:
                here = take(rows)
                rows = _Rows(*(column[here] for column in rows))
            yield block, rows

    def sizes(self) -> Int[np.ndarray, " groups"]:
        """Return how many rows of each group are left."""
        counts = np.zeros(self._groups, np.int64)
        for _, rows in self.narrowed():
            counts += np.bincount(rows.group, minlength=self._groups)
        return counts

    def narrow(self, ranks: Int[np.ndarray, " groups"]) -> None:
        """Leave the best `ranks[g]` rows of each group g, or of all rows if `ranks` is one number."""
        self._cuts.append(_cut(lambda: (rows for _, rows in self.narrowed()), ranks))


def _cut(rows: Callable[[], Iterator[_Rows]], ranks: Int[np.ndarray, " groups"]) -> _Cut:
    """Find the cut at which `ranks` rows of each group, or of all rows, are within.

    There must be at least as many rows.
    """
    groups, left = len(ranks), ranks.astype(np.int64)
    width = max(1, min(16, _COUNTERS - (groups - 1).bit_length()))
    found, known = np.zeros(groups, np.uint32), 0
    while known < 32:
        step = min(width, 32 - known)
        table = np.zeros(groups << step, np.int64)
        for some in rows():
            keys, of = some.keys, some.group if groups > 1 else np.zeros_like(some.group)
            if known:
                same = keys >> (32 - known) == found[of]
                keys, of = keys[same], of[same]
            digits = keys >> (32 - known - step) & ((1 << step) - 1)
            np.add.at(table, (of << step) + digits, 1)
        downward = table.reshape(groups, 1 << step)[:, ::-1].cumsum(axis=1)
        place = (downward >= left[:, None]).argmax(axis=1)
        left -= np.where(place > 0, downward[np.arange(groups), place - 1], 0)
        found = (found << step) | ((1 << step) - 1 - place).astype(np.uint32)
        known += step
    return _Cut(found, left)


def _keys(values: Float[np.ndarray, " rows"]) -> UInt32[np.ndarray, " rows"]:
    """Return numbers that are ordered as the values are. 0 and -0 are equal."""
    bits = (values.astype(np.float32, copy=False) + np.float32(0)).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _numbers(keys: UInt32[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """Return the values of keys."""
    return np.where(keys >> 31, keys & np.uint32((1 << 31) - 1), ~keys).view(np.float32)
