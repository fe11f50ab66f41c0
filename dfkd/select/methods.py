"""What `--method` names: functions from scores to the admissible rows, best first.

A method of one's own has the same form: `method(scores, rng, *, parameters...) -> Ranking`. It sees usable rows only:
every score is finite. The scores may be read-only. Rows are numbered within the scores that it is given. Ties fall to
the earlier row, so that a result depends on nothing but its input. `rng` is seeded by `--seed`.

Its parameters are what `NAME:key=value` sets: each has a type, where it is wanted a `Range` (`Annotated`), and a
default. One that is called `gamma` is set by `--gamma` too. `Traits` declares the rest.
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
"""Over what images are picked evenly."""


@dataclass(frozen=True)
class ImageScores:
    """The teacher's answers, one row an image: largest probability, entropy over log(classes), its class."""

    confidence: Float[np.ndarray, " rows"]
    entropy: Float[np.ndarray, " rows"]
    prediction: Int[np.ndarray, " rows"]
    distance: Float[np.ndarray, " rows"] | None = None
    """From what the teacher's BatchNorm layers remember (`statistics`); NaN where it has none."""


@dataclass(frozen=True)
class Scale:
    """What a method ranks by: with it images are chosen while their scores are read, and not held in memory."""

    value: Callable[[ImageScores, np.random.Generator], Float[np.ndarray, " rows"]]
    """A float32 for each image, the largest first; NaN is not admitted. The generator is that of a part of the pool."""
    gamma: float | None = None
    """Admitted is this share of the usable images, the surest ones; None: all."""
    missing: str = ""
    """What is said where it admits no image at all."""


@dataclass(frozen=True)
class Traits(components.Traits):
    """What a method can declare: `@Traits(balance="class")` above it."""

    balance: Balance = "none"
    """The balance where `--balance` is not given."""
    reach: float | None = None
    """Images are picked evenly among the best `reach` times as many as are wanted; None: among all admitted ones."""
    typical: bool = False
    """It selects by `ImageScores.distance`: the pool's filter is fitted to the nearest images alone."""
    scale: Callable[..., Scale] | None = None
    """From the method's parameters to what it ranks by, where that is one number for each image on its own."""


@dataclass(frozen=True)
class Ranking:
    """Admissible rows, best first, and the confidence threshold that admitted them, if there was one."""

    rows: Int[np.ndarray, " admitted"]
    threshold: float | None = None


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
    """log(c**weight / d)."""
    return weight * np.log(confidence) - np.log(np.maximum(distance, np.finfo(np.float32).tiny))


def surest(gamma: float, rows: int) -> int:
    """How many of so many rows the share `gamma` is."""
    return max(1, math.ceil(round(gamma * rows, 6)))  # rounded first: 0.07 * 100 is a little above 7


@Traits(balance="class", scale=lambda gamma, draw: Scale(_DRAWS[draw], gamma))
def threshold(
    scores: ImageScores,
    rng: np.random.Generator,
    *,
    gamma: Annotated[float, SHARE] = 0.7,
    draw: Literal["confidence", "random", "entropy"] = "confidence",
) -> Ranking:
    """Adaptive confidence threshold: among the share `gamma` of the pool that the teacher is surest of, `draw` first.

    delta is the (1 - gamma) quantile of the confidence c over the pool, the candidates are X' = {c >= delta}. With
    `draw="entropy"` the picks are those of X' with the largest entropy, neither the unsure nor the nearly one-hot: our
    reading of a description in https://arxiv.org/abs/2302.08771, whose formula is not at hand. It costs a point where
    few are picked (docs/results.md), so the most confident are the default, evenly over the classes (`--balance`).

    Raises: RequestError unless 0 < gamma <= 1.
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
    """The images most like the teacher's training data to its BatchNorm layers, those of a large c**weight / d first.

    d is the distance of `dfkd.models.features.image_distance.ImageDistances`, c the confidence; `weight=0` ranks by the
    distance alone. A network is often sure of what it never saw: text, screenshots, noise. The statistics of its layers
    tell such images from photographs where confidence cannot (docs/results.md).

    Raises: RequestError for a teacher without such layers, or a weight below 0.
    """
    Range(least=0).check(weight=weight)
    if scores.distance is None or np.isnan(scores.distance).all():
        raise RequestError(_NO_STATISTICS)
    known = np.flatnonzero(~np.isnan(scores.distance))
    value = _likeness(scores.confidence[known], scores.distance[known], weight)
    return Ranking(known[_largest_first(value)])


@Traits(scale=lambda: Scale(_drawn))
def random(scores: ImageScores, rng: np.random.Generator) -> Ranking:
    """Every image alike: the baseline that a selection has to beat."""
    return Ranking(rng.permutation(len(scores.confidence)))


@Traits(scale=lambda: Scale(_confidence))
def confidence(scores: ImageScores, rng: np.random.Generator) -> Ranking:
    """The most confident first: the selection of DFND (Learning student networks in the wild, CVPR 2021)."""
    return Ranking(_largest_first(scores.confidence))


@Traits(scale=lambda: Scale(_entropy))
def entropy(scores: ImageScores, rng: np.random.Generator) -> Ranking:
    """The most uncertain first. Known to be poison by itself (Mosaicking to distill, https://arxiv.org/abs/2110.15094)."""
    return Ranking(_largest_first(scores.entropy))


def _largest_first(values: Float[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    return np.argsort(-values, kind="stable")
