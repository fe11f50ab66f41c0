"""How far a classifier's confidences are from its accuracy."""

import numpy as np
from jaxtyping import Bool, Float, Int

CALIBRATION_BINS = 15
"""Bins of equal width of the calibration error."""


def calibration_error(confidence: Float[np.ndarray, " images"], right: Bool[np.ndarray, " images"]) -> float:
    """Return the expected calibration error over 15 bins of equal width (https://arxiv.org/abs/1706.04599).

    It is the mean over images of the distance between confidence and accuracy of their bin.
    """
    gaps = np.bincount(bins_of(confidence), weights=confidence - right, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def bins_of(confidence: Float[np.ndarray, " images"]) -> Int[np.ndarray, " images"]:
    """Return the number of each confidence's bin. A confidence on an edge belongs to the bin below."""
    return np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, None)
