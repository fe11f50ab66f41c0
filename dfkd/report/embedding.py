"""The teacher's answers in two dimensions: the directions in which they vary most (PCA)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from dfkd.report.kept_answers import KeptAnswers
from dfkd.select.score import PART_ROWS
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.system.spacing import evenly_spaced

FITTED_ON = 10_000
"""Images that decide the two directions."""
PARTS = 16
"""Parts of the pool that are read: the answers to all of a large one would take minutes."""


@dataclass(frozen=True)
class Embedding:
    """Where each image is; NaN where there is no answer."""

    points: Float[np.ndarray, "rows 2"]
    share: float
    """Of the variance that the two directions hold."""
    kind: str
    """What was embedded: `features` or `logits`."""


def embedding(answers: KeptAnswers, rows: Int[np.ndarray, " rows"]) -> Embedding | None:
    """Two coordinates for sorted pool rows; None where fewer than three images have answers that can be read."""
    parts = np.unique(rows // PART_ROWS)
    read = parts[evenly_spaced(len(parts), PARTS)]
    known = answers.knows(rows) & np.isin(rows // PART_ROWS, read)
    there = rows[known]
    if len(there) < 3:
        return None
    try:
        values = np.concatenate([*answers.read(there)])
    except RequestError as error:
        say(f"note: the teacher's {answers.kind} are not shown: {error}")
        return None
    some = evenly_spaced(len(there), FITTED_ON)
    center, directions, share = principal(values[some])
    if share == 0:  # all answers are the same
        return None
    points = np.full((len(rows), 2), np.nan, np.float32)
    points[known] = (values - center) @ directions
    return Embedding(points, share, answers.kind)


def principal(
    values: Float[np.ndarray, "rows width"],
) -> tuple[Float[np.ndarray, " width"], Float[np.ndarray, "width 2"], float]:
    """The mean, the two unit eigenvectors of the covariance with the largest eigenvalues, and their share of its trace.

    Of each the component that is largest in absolute value is positive.
    """
    center = values.mean(axis=0)
    spread = (values - center).astype(np.float64)
    eigenvalues, vectors = np.linalg.eigh(spread.T @ spread / len(values))
    directions = vectors[:, :-3:-1]
    if directions.shape[1] < 2:
        directions = np.pad(directions, ((0, 0), (0, 2 - directions.shape[1])))
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)
    directions = directions * np.where(largest < 0, -1, 1)
    total = eigenvalues.sum()
    return center, directions.astype(np.float32), float(eigenvalues[-2:].sum() / total) if total > 0 else 0.0
