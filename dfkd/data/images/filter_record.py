"""Record of a linear filter, as manifests have it: kernel, bias, and the teacher's Inception Scores."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float


def read_arrays(
    described: Mapping[str, Any], channels: int
) -> tuple[Float[np.ndarray, "channels channels size size"], Float[np.ndarray, " channels"]] | None:
    """Return kernel and bias of a filter, or None if there is none.

    Raises: ValueError, KeyError or TypeError if the value is damaged.
    """
    if "kernel" not in described:
        return None
    try:
        kernel, bias = (np.array(described[key], np.float32) for key in ("kernel", "bias"))
    except OverflowError as error:
        raise ValueError(f"filter has a number that is too large ({error})") from None
    size = kernel.shape[-1] if kernel.ndim else 0
    if kernel.shape != (channels, channels, size, size) or size % 2 == 0 or bias.shape != (channels,):
        raise ValueError(f"filter has a kernel of {list(kernel.shape)} and a bias of {list(bias.shape)}")
    if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
        raise ValueError("filter has numbers that are not finite")
    return kernel, bias


def read_scores(described: Mapping[str, Any]) -> tuple[float, float]:
    """Return the teacher's Inception Scores without and with the filter.

    Raises: ValueError or KeyError if there are none.
    """
    scores = described["inception_score"]
    if not isinstance(scores, list) or [type(score) for score in scores] != [float, float]:
        raise ValueError("filter has no scores")
    if not all(map(math.isfinite, scores)):
        raise ValueError("filter has a score that is not finite")
    return scores[0], scores[1]
