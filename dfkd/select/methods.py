"""Selection methods: functions from scores to the admissible rows, best first.

Your own method has the same form: `method(scores, rng, *, parameters...) -> Ranking`. The method gets usable rows only:
every score is finite. The scores may be read-only. Rows are numbered within the given scores. Of equal values, the
earlier row comes first, so that a result depends on its input alone. `rng` is seeded by `--seed`.

`NAME:key=value` sets the parameters. Each has a type, a default and, if needed, a `Range` (`Annotated`). `--gamma` also
sets a parameter of that name. `Traits` declares the rest.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float, Int

from dfkd.system import components
from dfkd.system.errors import RequestError
from dfkd.system.limits import SHARE, Range

__all__ = ["confidence", "entropy", "random", "statistics", "threshold"]


Balance = Literal["none", "class", "cluster"]
"""Groups over which images are picked evenly."""


@dataclass(frozen=True)
class ImageScores:
    """The teacher's scores of a pool, one row per image."""

    confidence: Float[np.ndarray, " rows"]
    """Largest probability, from 0 to 1."""
    entropy: Float[np.ndarray, " rows"]
    """Entropy of the probabilities, divided by log(classes): from 0 to 1."""
    prediction: Int[np.ndarray, " rows"]
    """Most probable class."""
    distance: Float[np.ndarray, " rows"] | None = None
    """Distance from the statistics of the teacher's BatchNorm layers. NaN for a teacher without them."""


@dataclass(frozen=True)
class Scale:
    """The number by which a method ranks. With a scale, `select` can choose without holding all scores in memory."""

    value: Callable[[ImageScores, np.random.Generator], Float[np.ndarray, " rows"]]
    """Function that returns a float32 for each image, of which the largest come first.

    NaN is not admitted. The generator is that of a part of the pool.
    """
    gamma: float | None = None
    """Most confident share of the usable images that is admitted. None admits all."""
    missing: str = ""
    """End of the error message if no image is admitted."""


@dataclass(frozen=True)
class Traits(components.Traits):
    """Declarations of a selection method: `@Traits(balance="class")` above the function."""

    balance: Balance = "none"
    """Balance if `--balance` is not given."""
    reach: float | None = None
    """Factor of `--count`: images are picked evenly among the best `reach * count`. None: among all admitted images."""
    typical: bool = False
    """Whether the method selects by `ImageScores.distance`. The pool filter is then fitted to the nearest images."""
    scale: Callable[..., Scale] | None = None
    """Function from the method's parameters to its `Scale`, if the method ranks each image by one number."""


@dataclass(frozen=True)
class Ranking:
    """The admissible rows of a pool, best first."""

    rows: Int[np.ndarray, " admitted"]
    """Row numbers, each at most once."""
    threshold: float | None = None
    """Smallest confidence that was admitted, if the method has a threshold."""


def _confidence(scores: ImageScores, rng: np.random.Generator) -> Float[np.ndarray, " rows"]:
    return scores.confidence


def _entropy(scores: ImageScores, rng: np.random.Generator) -> Float[np.ndarray, " rows"]:
    return scores.entropy


def _drawn(scores: ImageScores, rng: np.random.Generator) -> Float[np.ndarray, " rows"]:
    return rng.random(len(scores.confidence), np.float32)


_DRAWS = {"confidence": _confidence, "entropy": _entropy, "random": _drawn}
_NO_STATISTICS = "it reads the teacher's BatchNorm layers, and this teacher has none; threshold needs none"


def _likeness(
    confidence: Float[np.ndarray, " rows"], distance: Float[np.ndarray, " rows"], weight: float
) -> Float[np.ndarray, " rows"]:
    """Return log(c**weight / d)."""
    return weight * np.log(confidence) - np.log(np.maximum(distance, np.finfo(np.float32).tiny))


def surest(gamma: float, rows: int) -> int:
    """Return the number of rows in the share `gamma` of all `rows`, at least 1."""
    return max(1, math.ceil(round(gamma * rows, 6)))  # rounded first: 0.07 * 100 is a little above 7


@Traits(balance="class", scale=lambda gamma, draw: Scale(_DRAWS[draw], gamma))
def threshold(
    scores: ImageScores,
    rng: np.random.Generator,
    *,
    gamma: Annotated[float, SHARE] = 0.7,
    draw: Literal["confidence", "random", "entropy"] = "confidence",
) -> Ranking:
    """Admit the most confident share of the pool, then pick from it (adaptive confidence threshold).

        X' = {x : c(x) >= delta},   delta = the (1 - gamma) quantile of c over the pool

    c is the confidence. With `draw="entropy"`, the picks are those of X' with the largest entropy, neither uncertain
    nor nearly one-hot. This is our reading of a description in https://arxiv.org/abs/2302.08771, whose formula was not
    available. It costs a point of accuracy if few images are picked (docs/results.md). The default therefore picks the
    most confident images, evenly over the classes (`--balance`).

    Args:
        scores: The scores of the usable images.
        rng: Random numbers, for `draw="random"`.
        gamma: The share of the pool that is admitted.
        draw: The order of the admitted images.

    Returns:
        The admitted rows, and delta.

    Raises:
        RequestError: `gamma` is not above 0 and at most 1.
    """
    SHARE.check(gamma=gamma)
    rows = len(scores.confidence)
    share = surest(gamma, rows)
    delta = float(np.partition(scores.confidence, rows - share)[rows - share])
    admitted = np.flatnonzero(scores.confidence >= delta)
    if draw == "random":
        return Ranking(rng.permutation(admitted), delta)
    value = scores.entropy if draw == "entropy" else scores.confidence
    return Ranking(admitted[_largest_first(value[admitted])], delta)


def _statistics_scale(weight: float) -> Scale:
    def value(scores: ImageScores, rng: np.random.Generator) -> Float[np.ndarray, " rows"]:
        none = np.full(len(scores.confidence), np.nan, np.float32)
        return _likeness(scores.confidence, none if scores.distance is None else scores.distance, weight)

    return Scale(value, missing=_NO_STATISTICS)


@Traits(balance="class", reach=1.5, typical=True, scale=_statistics_scale)
def statistics(
    scores: ImageScores, rng: np.random.Generator, *, weight: Annotated[float, Range(least=0)] = 0.0
) -> Ranking:
    """Rank images by the teacher's BatchNorm statistics: those most like the teacher's training data come first.

        c^weight / d,   the largest first

    d is the distance of `dfkd.models.features.image_distance.ImageDistances`, and c the confidence. A network is often
    confident about images unlike its training data: text, screenshots, noise. The statistics of its layers tell these
    from photographs, and confidence does not (docs/results.md).

    Args:
        scores: The scores of the usable images, with distances.
        rng: Not used.
        weight: The exponent of the confidence. 0 ranks by the distance alone.

    Returns:
        The rows that have a distance.

    Raises:
        RequestError: The teacher has no BatchNorm layers, or `weight` is below 0.
    """
    Range(least=0).check(weight=weight)
    if scores.distance is None or np.isnan(scores.distance).all():
        raise RequestError(_NO_STATISTICS)
    known = np.flatnonzero(~np.isnan(scores.distance))
    value = _likeness(scores.confidence[known], scores.distance[known], weight)
    return Ranking(known[_largest_first(value)])


@Traits(scale=lambda: Scale(_drawn))
def random(scores: ImageScores, rng: np.random.Generator) -> Ranking:
    """Rank all images in random order, as a baseline.

    Args:
        scores: The scores of the usable images.
        rng: Random numbers, which decide the order.

    Returns:
        All rows.
    """
    return Ranking(rng.permutation(len(scores.confidence)))


@Traits(scale=lambda: Scale(_confidence))
def confidence(scores: ImageScores, rng: np.random.Generator) -> Ranking:
    """Rank all images by confidence, the largest first.

    This is the selection of DFND (Learning student networks in the wild, CVPR 2021).

    Args:
        scores: The scores of the usable images.
        rng: Not used.

    Returns:
        All rows.
    """
    return Ranking(_largest_first(scores.confidence))


@Traits(scale=lambda: Scale(_entropy))
def entropy(scores: ImageScores, rng: np.random.Generator) -> Ranking:
    """Rank all images by entropy, the largest first, a baseline that is known to harm.

    Mosaicking to distill (https://arxiv.org/abs/2110.15094) measured this.

    Args:
        scores: The scores of the usable images.
        rng: Not used.

    Returns:
        All rows.
    """
    return Ranking(_largest_first(scores.entropy))


def _largest_first(values: Float[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    return np.argsort(-values, kind="stable")
