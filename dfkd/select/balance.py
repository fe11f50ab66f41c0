"""Balanced picks over groups (predicted classes, or clusters of features), as far as the groups have enough rows."""

import numpy as np
from jaxtyping import Bool, Int


def quotas(sizes: Int[np.ndarray, " groups"], count: int) -> Int[np.ndarray, " groups"]:
    """Return how many rows to take of each group, so that the smallest number is as large as possible.

    The numbers sum to min(count, all rows). Groups below a common level give all their rows, and the others give as
    many as the level. The remaining rows come from the first of the larger groups, one each.
    """
    count = min(count, int(sizes.sum()))
    low, high = 0, int(sizes.max(initial=0))
    while low < high:  # find the highest level at which the sum is at most `count`
        level = (low + high + 1) // 2
        low, high = (level, high) if np.minimum(sizes, level).sum() <= count else (low, level - 1)
    taken = np.minimum(sizes, low)
    taken[np.flatnonzero(sizes > low)[: count - int(taken.sum())]] += 1
    return taken


def pick_balanced(groups: Int[np.ndarray, " rows"], count: int) -> Bool[np.ndarray, " rows"]:
    """Return a mask of `count` rows, balanced over groups: the first rows of each group.

    `groups` has the best row first. Groups are numbered from 0.
    """
    sizes = np.bincount(groups)
    by_group = np.argsort(groups, kind="stable")  # the rows of each group, best first
    picked = np.zeros(len(groups), dtype=bool)
    for start, quota in zip(np.cumsum(sizes) - sizes, quotas(sizes, count), strict=True):
        picked[by_group[start : start + quota]] = True
    return picked
