"""Sources of batches. The training loop knows only this interface of a source.

A generator that trains along with the student is a source too: its `update` is the generator's step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dfkd.models.features.outputs import Outputs
from dfkd.system.shares import Share

Student = Callable[[Float[Tensor, "batch channels height width"]], Outputs]
"""The student's forward pass for a source: as in training, with gradients to the view, but fixed statistics."""


@dataclass(frozen=True)
class Batch:
    """Images, and the row of the stored image of each. `rows` is None if some images are not stored.

    If several processes share the batch, `pixels` are those of `share`, and `rows` are those of the whole batch.
    """

    pixels: UInt8[Tensor, "images height width channels"]
    rows: Int[Tensor, " batch"] | None
    share: Share | None = None


@runtime_checkable
class Source(Protocol):
    """A source of training images."""

    @property
    def images(self) -> int | None:
        """Number of stored images. The rows of a batch are below this. None if images are not stored."""
        ...

    @property
    def teacher_forwards(self) -> int:
        """Number of images that the teacher has answered for the source itself."""
        ...

    @property
    def generator_steps(self) -> int:
        """Number of optimizer steps of the source's generators."""
        ...

    @property
    def taps(self) -> frozenset[str]:
        """Taps of the teacher that a generator of the source reads."""
        ...

    def warm_up(self, student: Student) -> Mapping[str, Tensor] | None:
        """Do one piece of the source's work before the student's first step.

        Returns its metrics, or None if nothing is left to do.
        """
        ...

    def update(self, student: Student) -> Mapping[str, Tensor]:
        """Do the source's work before a step of the student. Returns its metrics; none for stored images."""
        ...

    @property
    def follows(self) -> bool:
        """Whether the source needs the divergence of the student from the teacher after every batch (`seen`)."""
        ...

    def seen(self, rows: Int[Tensor, " batch"], values: Float[Tensor, " batch"]) -> None:
        """Record the divergence of the student from the teacher on each image of a batch."""
        ...

    def sample(self, count: int, share: Share | None = None) -> Batch:
        """Return the next `count` images. With `share`, the pixels are only those of the share."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs to continue with the same images."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from `state_dict`."""
        ...


class NotFollowing:
    """Base of sources that do not follow the student."""

    @property
    def follows(self) -> bool:
        """False: the source does not follow the student."""
        return False

    def seen(self, rows: Int[Tensor, " batch"], values: Float[Tensor, " batch"]) -> None:
        """Ignore the divergence."""


class WithoutGenerator(NotFollowing):
    """Base of sources without a generator."""

    teacher_forwards = generator_steps = 0
    taps: frozenset[str] = frozenset()

    def warm_up(self, student: Student) -> None:
        """Return None: there is nothing to do."""

    def update(self, student: Student) -> dict[str, Tensor]:
        """Return no metrics: there is nothing to do."""
        return {}


class MixedSource(NotFollowing):
    """A mixture of sources in fixed shares. The shares are exact to two images over any number of batches."""

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]) -> None:
        """Mix sources, with one weight per source. The weights need not sum to 1."""
        self._sources, self._position = list(sources), 0
        self._edges = np.cumsum([0.0, *weights]) / sum(weights)
        self._taken = self._due(0)

    @property
    def images(self) -> int | None:
        """Number of stored images, over all sources. None if a source stores none."""
        counts = [source.images for source in self._sources]
        return None if None in counts else sum(count or 0 for count in counts)

    @property
    def teacher_forwards(self) -> int:
        """Number of images that the teacher has answered, over all sources."""
        return sum(source.teacher_forwards for source in self._sources)

    @property
    def generator_steps(self) -> int:
        """Number of optimizer steps of generators, over all sources."""
        return sum(source.generator_steps for source in self._sources)

    @property
    def taps(self) -> frozenset[str]:
        """Taps of the teacher, over all sources."""
        return frozenset(tap for source in self._sources for tap in source.taps)

    def warm_up(self, student: Student) -> Mapping[str, Tensor] | None:
        """Do one piece of the first source that has work left. Returns its metrics, or None."""
        return next((seen for source in self._sources if (seen := source.warm_up(student)) is not None), None)

    def update(self, student: Student) -> dict[str, Tensor]:
        """Update every source in turn. Returns the metrics of all sources."""
        return {name: value for source in self._sources for name, value in source.update(student).items()}

    def sample(self, count: int, share: Share | None = None) -> Batch:
        """Return the next `count` images, one source after the other. `share` is as in `Source.sample`."""
        counts = self._next(count)
        starts = np.cumsum([0, *counts]).tolist()
        batches = [
            source.sample(n, share and share.within(start, start + n))
            for source, n, start in zip(self._sources, counts, starts, strict=False)
            if n
        ]
        device = next((b.pixels.device for b in batches if b.pixels.device.type != "cpu"), torch.device("cpu"))
        pixels = torch.cat([batch.pixels.to(device, non_blocking=True) for batch in batches])
        if self.images is None:
            return Batch(pixels, None, share)
        offsets = np.cumsum([0, *(source.images for source in self._sources)])
        used = [offset for offset, n in zip(offsets.tolist(), counts, strict=False) if n]
        rows = [batch.rows + offset for batch, offset in zip(batches, used, strict=True) if batch.rows is not None]
        return Batch(pixels, torch.cat(rows), share)

    def state_dict(self) -> dict[str, Any]:
        """Return the position, the images taken from every source, and the state of every source."""
        sources = [source.state_dict() for source in self._sources]
        return {"position": self._position, "taken": self._taken.tolist(), "sources": sources}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from `state_dict`."""
        self._position = int(state["position"])
        self._taken = np.array(state["taken"]) if "taken" in state else self._due(self._position)
        for source, own in zip(self._sources, state["sources"], strict=True):
            source.load_state_dict(own)

    def _due(self, position: int) -> Int[np.ndarray, " sources"]:
        """Return the number of images of every source among the first `position` images."""
        due: np.ndarray = np.diff(np.floor(self._edges * position + 1e-9).astype(np.int64))
        return due

    def _next(self, count: int) -> list[int]:
        """Return how many of the next `count` images are from each source, and advance."""
        self._position += count
        due = self._due(self._position) - self._taken
        counts = due.clip(0)  # rounding can move a place from one source to another: images are not taken back
        for _ in range(int(counts.sum()) - count):
            counts[counts.argmax()] -= 1
        self._taken = self._taken + counts
        return [*map(int, counts)]
