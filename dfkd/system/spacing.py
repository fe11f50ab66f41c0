"""Rows at even distances: a sample that is the same in every run."""

import numpy as np
from jaxtyping import Int


def evenly_spaced(total: int, count: int) -> Int[np.ndarray, " some"]:
    """Up to `count` row numbers below `total`, the first and the last among them, in ascending order."""
    return np.unique(np.linspace(0, total - 1, min(total, count)).round().astype(np.int64))
