"""Where batches come from. The training loop knows nothing of a source but this interface.

A generator that learns along with the student is a source too: its `update` is the generator's step.
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
"""The student as a source sees it: it answers a view as in training, gradients reach the view, no statistics move."""


@dataclass(frozen=True)
class Batch:
    """Images, and which stored image each one is; None where some are not stored.

    Where several processes share the batch, `pixels` are those of `share`, and `rows` are of all.
    """

    pixels: UInt8[Tensor, "images height width channels"]
    rows: Int[Tensor, " batch"] | None
    share: Share | None = None


@runtime_checkable
class Source(Protocol):
    """Images to learn on."""

    @property
    def images(self) -> int | None:
        """How many there are: rows of a batch are below it. None where they are not stored."""
        ...

    @property
    def teacher_forwards(self) -> int:
        """Images that the teacher has answered for the source's own sake."""
        ...

    @property
    def generator_steps(self) -> int:
        """Steps that a generator of the source has learnt for."""
        ...

    @property
    def taps(self) -> frozenset[str]:
        """The teacher's features that a generator of the source reads."""
        ...

    def warm_up(self, student: Student) -> Mapping[str, Tensor] | None:
        """A piece of what the source does before the student's first step; None where nothing is left to do."""
        ...

    def update(self, student: Student) -> Mapping[str, Tensor]:
        """What the source does before a step of the student, and its metrics; nothing for stored images."""
        ...

    @property
    def follows(self) -> bool:
        """Whether it wants to be told, after every batch, how far the student is from the teacher (`seen`)."""
        ...

    def seen(self, rows: Int[Tensor, " batch"], values: Float[Tensor, " batch"]) -> None:
        """Told of a batch: the divergence of the student from the teacher on each of its images."""
        ...

    def sample(self, count: int, share: Share | None = None) -> Batch:
        """The next `count` images; the pixels only of the `share`, where it is given."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on with the same images."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        ...


class Deaf:
    """What a source answers that does not want to be told of the student."""

    @property
    def follows(self) -> bool:
        """It does not."""
        return False

    def seen(self, rows: Int[Tensor, " batch"], values: Float[Tensor, " batch"]) -> None:
        """Nothing changes."""


class Still(Deaf):
    """What a source answers that has no generator: images that are there already follow no student."""

    teacher_forwards = generator_steps = 0
    taps: frozenset[str] = frozenset()

    def warm_up(self, student: Student) -> None:
        """Nothing is left to do."""

    def update(self, student: Student) -> dict[str, Tensor]:
        """Nothing changes."""
        return {}


class MixedSource(Deaf):
    """Batches of several sources in fixed shares, to the image: over any number of batches each has its share."""

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]) -> None:
        """One weight a source; they need not sum to 1."""
        self._sources, self._position = list(sources), 0
        self._edges = np.cumsum([0.0, *weights]) / sum(weights)

    @property
    def images(self) -> int | None:
        """The stored images of all sources together; None where a source stores none."""
        counts = [source.images for source in self._sources]
        return None if None in counts else sum(count or 0 for count in counts)

    @property
    def teacher_forwards(self) -> int:
        """Of all sources."""
        return sum(source.teacher_forwards for source in self._sources)

    @property
    def generator_steps(self) -> int:
        """Of all sources."""
        return sum(source.generator_steps for source in self._sources)

    @property
    def taps(self) -> frozenset[str]:
        """Of all sources."""
        return frozenset(tap for source in self._sources for tap in source.taps)

    def warm_up(self, student: Student) -> Mapping[str, Tensor] | None:
        """Of one source after the other."""
        return next((seen for source in self._sources if (seen := source.warm_up(student)) is not None), None)

    def update(self, student: Student) -> dict[str, Tensor]:
        """Every source in turn."""
        return {name: value for source in self._sources for name, value in source.update(student).items()}

    def sample(self, count: int, share: Share | None = None) -> Batch:
        """The next `count` images: each source's part of them, one behind the other."""
        start, self._position = self._position, self._position + count
        ends = [np.floor(self._edges * position + 1e-9).astype(np.int64) for position in (start, self._position)]
        counts = np.diff(ends[1] - ends[0]).tolist()
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
        """The position, and every source."""
        return {"position": self._position, "sources": [source.state_dict() for source in self._sources]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._position = int(state["position"])
        for source, own in zip(self._sources, state["sources"], strict=True):
            source.load_state_dict(own)
