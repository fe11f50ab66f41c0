"""What `--method` names: functions from scores to the admissible rows, best first.

A method of one's own has the same form: `method(scores, rng, *, parameters...) -> Ranking`. It sees usable rows only:
every score is finite. The scores may be read-only. Rows are numbered within the scores that it is given. Ties fall to
the earlier row, so that a result depends on nothing but its input. `rng` is seeded by `--seed`.

Its parameters are what `NAME:key=value` sets: each has a type, where it is wanted a `Range` (`Annotated`), and a
default. One that is called `gamma` is set by `--gamma` too. `Traits` declares the rest.
"""

import math
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
class Traits(components.Traits):
    """What a method can declare: `@Traits(balance="class")` above it."""

    balance: Balance = "none"
    """The balance where `--balance` is not given."""
    reach: float | None = None
    """Images are picked evenly among the best `reach` times as many as are wanted; None: among all admitted ones."""
    typical: bool = False
    """It selects by `ImageScores.distance`: the pool's filter is fitted to the nearest images alone."""


@dataclass(frozen=True)
class ImageScores:
    """The teacher's answers, one row an image: largest probability, entropy over log(classes), its class."""

    confidence: Float[np.ndarray, " rows"]
    entropy: Float[np.ndarray, " rows"]
    prediction: Int[np.ndarray, " rows"]
    distance: Float[np.ndarray, " rows"] | None = None
    """From what the teacher's BatchNorm layers remember (`statistics`); NaN where it has none."""


@dataclass(frozen=True)
class Ranking:
    """Admissible rows, best first, and the confidence threshold that admitted them, if there was one."""

    rows: Int[np.ndarray, " admitted"]
    threshold: float | None = None


@Traits(balance="class")
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
    share = max(1, math.ceil(round(gamma * rows, 6)))  # rounded first: 0.07 * 100 is a little above 7
    delta = float(np.partition(scores.confidence, rows - share)[rows - share])
    admitted = np.flatnonzero(scores.confidence >= delta)
    if draw == "random":
        return Ranking(rng.permutation(admitted), delta)
    value = scores.entropy if draw == "entropy" else scores.confidence
    return Ranking(admitted[_largest_first(value[admitted])], delta)


@Traits(balance="class", reach=1.5, typical=True)
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
        raise RequestError("it reads the teacher's BatchNorm layers, and this teacher has none; threshold needs none")
    known = np.flatnonzero(~np.isnan(scores.distance))
    tiny = np.finfo(np.float32).tiny
    value = weight * np.log(scores.confidence[known]) - np.log(np.maximum(scores.distance[known], tiny))
    return Ranking(known[_largest_first(value)])


def random(scores: ImageScores, rng: np.random.Generator) -> Ranking:
    """Every image alike: the baseline that a selection has to beat."""
    return Ranking(rng.permutation(len(scores.confidence)))


def confidence(scores: ImageScores, rng: np.random.Generator) -> Ranking:
    """The most confident first: the selection of DFND (Learning student networks in the wild, CVPR 2021)."""
    return Ranking(_largest_first(scores.confidence))


def entropy(scores: ImageScores, rng: np.random.Generator) -> Ranking:
    """The most uncertain first. Known to be poison by itself (Mosaicking to distill, https://arxiv.org/abs/2110.15094)."""
    return Ranking(_largest_first(scores.entropy))


def _largest_first(values: Float[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    return np.argsort(-values, kind="stable")
