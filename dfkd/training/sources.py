"""Where batches come from. The training loop knows nothing of a source but this interface.

A generator that learns along with the student is a source too: its `update` is the generator's step.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dfkd.data.images.frame import Crops, Window
from dfkd.formats.shards import Shards
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError
from dfkd.system.foreign import Foreign
from dfkd.system.shares import Share
from dfkd.training.sampling import Following, Order

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


_FAILS = "the order of batches fails:"
_Rows = tuple[UInt8[Tensor, "images height width channels"], Int[Tensor, " batch"]]
"""Pixels and rows of a batch of stored images."""


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


class ShardSource(Still):
    """The images of one or more selections, one behind the other, in an endless order; every batch is full.

    Where images have to be decoded, the next batch is prepared while the student learns from this one, unless the order
    follows the student: then this one decides it.
    """

    def __init__(
        self,
        selections: Sequence[Shards],
        order: Order,
        resident: "Resident | None" = None,
        crops: Crops | None = None,
    ) -> None:
        """With `resident`, pixels are kept on its device from the first time that they are learnt from.

        With `crops`, every image is a random window of its file.
        """
        self._selections, self._order, self._position, self._crops = list(selections), order, 0, crops
        self._following = order if isinstance(order, Following) else None
        self._starts, self._resident = np.cumsum([0, *map(len, selections)]), resident
        ahead = any(shards.encoded for shards in selections) and not self.follows
        self._reader = ThreadPoolExecutor(1) if ahead else None
        self._ahead: tuple[int, Share | None, Future[_Rows]] | None = None

    @property
    def images(self) -> int:
        """The images of all selections together."""
        return int(self._starts[-1])

    @property
    def follows(self) -> bool:
        """Whether its order does."""
        return self._following is not None

    def seen(self, rows: Int[Tensor, " batch"], values: Float[Tensor, " batch"]) -> None:
        """Tell the order."""
        if self._following is not None:
            with Foreign(_FAILS, self._order):
                self._following.seen(rows.numpy(), values)

    def sample(self, count: int, share: Share | None = None) -> Batch:
        """The next `count` images; the pixels only of the `share`, where it is given."""
        position, self._position = self._position, self._position + count
        if self._reader is None:
            return Batch(*self._batch(position, count, share), share)
        batch = Batch(*self._read(position, count, share), share)
        self._ahead = (self._position, share, self._reader.submit(self._batch, self._position, count, share))
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position in the endless order, and the state of one that follows the student."""
        order = {"order": self._following.state_dict()} if self._following is not None else {}
        return {"position": self._position, **order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position."""
        self._position = int(state["position"])
        if self._following is not None:
            self._following.load_state_dict(state["order"])

    def _read(self, position: int, count: int, share: Share | None) -> _Rows:
        """The batch at a position, as far as it was read ahead: within a mixture its size differs from step to step."""
        if self._ahead is None:
            return self._batch(position, count, share)
        start, ahead, future = self._ahead
        pixels, rows = future.result()  # waited for in any case: one thread at a time reads
        if start != position or ahead != share:
            return self._batch(position, count, share)
        here = len(rows)
        if here == count:
            return pixels, rows
        if here < count:
            more = self._batch(position + here, count - here)
            return torch.cat([pixels, more[0]]), torch.cat([rows, more[1]])
        return pixels[:count], rows[:count]

    def _batch(self, position: int, count: int, share: Share | None = None) -> _Rows:
        with Foreign(_FAILS, self._order):
            rows = self._order.rows(position, count)
        self._check(rows, count)
        own = rows if share is None else rows[share.rows]
        if self._resident is not None:
            return self._resident(own, self._pixels), torch.from_numpy(rows)
        windows = None if self._crops is None else self._crops.at(position, count)
        if windows is not None and share is not None:
            windows = windows[share.rows]
        return torch.from_numpy(self._pixels(own, windows)), torch.from_numpy(rows)

    def _check(self, rows: object, count: int) -> None:
        """Raises: RequestError for what an order of one's own gives instead of rows."""
        is_rows = isinstance(rows, np.ndarray) and rows.shape == (count,) and rows.dtype.kind in "iu"
        if not is_rows or (count and not 0 <= rows.min() <= rows.max() < self.images):  # type: ignore[attr-defined]
            raise RequestError(
                f"the order of batches gives other than {count} whole numbers from 0 to {self.images - 1} as rows"
            )

    def _pixels(
        self, rows: Int[np.ndarray, " batch"], windows: Sequence[Window] | None = None
    ) -> UInt8[np.ndarray, "batch height width channels"]:
        if not len(rows):  # of a mixture, whose share has none of this source
            return self._selections[0].pixels(rows)
        which = np.searchsorted(self._starts, rows, side="right") - 1
        parts = []
        for number in np.unique(which):
            where = np.flatnonzero(which == number)
            given = () if windows is None else ([windows[i] for i in where.tolist()],)
            parts.append((where, self._selections[number].pixels(rows[where] - self._starts[number], *given)))
        if len(parts) == 1:
            return parts[0][1]
        out = np.empty((len(rows), *parts[0][1].shape[1:]), dtype=np.uint8)
        for where, pixels in parts:
            out[where] = pixels
        return out


class Resident:
    """Pixels on a device, where a batch is then gathered: an image is read and copied the first time it is needed.

    So a training begins at once, whatever the number of images, and from the second pass on nothing is read, decoded
    or moved. They take their size in uint8 there.
    """

    def __init__(self, images: int, size: int, channels: int, device: torch.device) -> None:
        self._pixels = torch.empty((images, size, size, channels), dtype=torch.uint8, device=device)
        self._here = np.zeros(images, dtype=bool)

    def __call__(
        self,
        rows: Int[np.ndarray, " batch"],
        read: Callable[[Int[np.ndarray, " some"]], UInt8[np.ndarray, "some height width channels"]],
    ) -> UInt8[Tensor, "batch height width channels"]:
        """The pixels of some rows; those that are not there yet are `read`."""
        new = np.unique(rows[~self._here[rows]])
        if len(new):
            pixels, where = torch.from_numpy(read(new)), torch.from_numpy(new)
            device = self._pixels.device  # nothing here waits for it
            self._pixels[where.to(device, non_blocking=True)] = pixels.to(device, non_blocking=True)
            self._here[new] = True
        return self._pixels[torch.from_numpy(rows).to(self._pixels.device, non_blocking=True)]


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
