"""Picking evenly over groups (predicted classes, or clusters of features) where the groups have enough."""

import numpy as np
from jaxtyping import Bool, Int


def quotas(sizes: Int[np.ndarray, " groups"], count: int) -> Int[np.ndarray, " groups"]:
    """How many to take of each group so that the smallest share is as large as can be; they sum to min(count, all).

    Groups below a level give all they have, the others up to it; what is left over goes, one each, to the first ones.
    """
    count = min(count, int(sizes.sum()))
    low, high = 0, int(sizes.max(initial=0))
    while low < high:  # the highest level at which the groups together do not give too many
        level = (low + high + 1) // 2
        low, high = (level, high) if np.minimum(sizes, level).sum() <= count else (low, level - 1)
    taken = np.minimum(sizes, low)
    taken[np.flatnonzero(sizes > low)[: count - int(taken.sum())]] += 1
    return taken


def pick_balanced(groups: Int[np.ndarray, " rows"], count: int) -> Bool[np.ndarray, " rows"]:
    """True for `count` rows, the first ones of every group; `groups` is ordered best row first, groups start at 0."""
    sizes = np.bincount(groups)
    by_group = np.argsort(groups, kind="stable")  # the rows of each group, best first
    picked = np.zeros(len(groups), dtype=bool)
    for start, quota in zip(np.cumsum(sizes) - sizes, quotas(sizes, count), strict=True):
        picked[by_group[start : start + quota]] = True
    return picked
