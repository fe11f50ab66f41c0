"""The teacher's outputs in two dimensions: the directions in which they vary most (PCA)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from dfkd.report.kept_answers import KeptAnswers
from dfkd.select.stored_scores import PART_ROWS
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.system.spacing import evenly_spaced

FITTED_ON = 10_000
"""Number of images that decide the two directions."""
PARTS = 16
"""Number of the pool's parts that are read. All outputs of a large pool would take minutes."""


@dataclass(frozen=True)
class Embedding:
    """Coordinates of each image. They are NaN where the teacher's outputs are not known."""

    points: Float[np.ndarray, "rows 2"]
    share: float
    """Share of the variance in the two directions."""
    kind: str
    """Embedded outputs: `features` or `logits`."""


def embedding(answers: KeptAnswers, rows: Int[np.ndarray, " rows"]) -> Embedding | None:
    """Return two coordinates for sorted pool rows.

    None if outputs of fewer than three images are stored, if they cannot be read, or if all are equal.
    """
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
    if share == 0:  # all outputs are equal
        return None
    points = np.full((len(rows), 2), np.nan, np.float32)
    points[known] = (values - center) @ directions
    return Embedding(points, share, answers.kind)


def principal(
    values: Float[np.ndarray, "rows width"],
) -> tuple[Float[np.ndarray, " width"], Float[np.ndarray, "width 2"], float]:
    """Return the mean, the first two principal directions, and their share of the variance.

    The directions are unit eigenvectors of the covariance. In each, the component of largest absolute value is
    positive.
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
