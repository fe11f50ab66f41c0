"""A selection before it is written, and what it needs of images and of scores."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from dfkd.config import GenerateConfig, SelectConfig
from dfkd.data import Images
from dfkd.formats.shards import ROWS_PER_SHARD
from dfkd.models.load import Model
from dfkd.select.choose import Choice
from dfkd.select.methods import ImageScores

SCORES_AT_ONCE = 8 * ROWS_PER_SHARD
"""Rows of scores that are read at once."""


@runtime_checkable
class Pictures(Protocol):
    """Images by number, of which some are selected: a pool, or the images of a generator."""

    encoded: bool
    image_size: int

    def __len__(self) -> int: ...

    def origins(self, indices: Int[np.ndarray, " batch"]) -> list[str]:
        """Return the origin of each image."""
        ...

    def images(self, indices: Int[np.ndarray, " batch"]) -> Images:
        """Return the pixels of the images."""
        ...

    def files(self, indices: Int[np.ndarray, " batch"]) -> list[bytes]:
        """Return the encoded files of the images, if images are stored encoded."""
        ...


@runtime_checkable
class Scores(Protocol):
    """The teacher's scores of the images."""

    def at(self, indices: Int[np.ndarray, " picked"]) -> ImageScores:
        """Return the scores of sorted numbers of images."""
        ...

    @property
    def problems(self) -> dict[int, str]:
        """Reason why an image could not be read, by number."""
        ...

    def logits(self, indices: Int[np.ndarray, " picked"]) -> Float[np.ndarray, "picked classes"]:
        """Return the float16 logits of sorted numbers of images."""
        ...


@dataclass(frozen=True)
class Selected:
    """A selection before it is written: the request, its images and scores, and the choice."""

    config: SelectConfig | GenerateConfig
    model: Model
    pool: Pictures
    scores: Scores
    choice: Choice
    content: dict[str, Any]
    """Everything that decides the selection."""
    source: str = "selection"
    """Name of the source in the manifest and in a run's result."""
    cost: Mapping[str, int] = field(default_factory=dict)
    """Cost of generating the images."""
    filter: Mapping[str, Any] | None = None
    """Filter of the images, as in the manifest."""
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Number of files that are no images, by file or folder of the pool, and by suffix or another reason."""
    bits: int | None = None
    """Number of bits in use, for images with 16 bits."""
    store: int | None = None
    """Shorter side in pixels at which encoded images are written. None: files are written as they are."""

    @cached_property
    def per_class(self) -> Int[np.ndarray, " classes"]:
        """Number of selected images for each predicted class."""
        counts = np.zeros(self.model.classes, np.int64)
        for start in range(0, len(self.choice), SCORES_AT_ONCE):
            rows = self.choice.some(start, start + SCORES_AT_ONCE)
            counts += np.bincount(self.scores.at(rows).prediction, minlength=len(counts))
        return counts
