"""Evenly spaced row numbers, for samples that are the same in every run."""

import numpy as np
from jaxtyping import Int


def evenly_spaced(total: int, count: int) -> Int[np.ndarray, " some"]:
    """Return up to `count` evenly spaced row numbers from 0 to `total` - 1, both included, in ascending order."""
    return np.unique(np.linspace(0, total - 1, min(total, count)).round().astype(np.int64))
