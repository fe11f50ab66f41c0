"""The stored images of selections as a source: read, decoded ahead, or kept on a device."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dfkd.data.images.frame import Crops, Window
from dfkd.formats.shards import Shards
from dfkd.system.errors import RequestError
from dfkd.system.foreign import Foreign
from dfkd.system.joined_rows import JoinedRows
from dfkd.system.shares import Share
from dfkd.training.sampling import Following, Order
from dfkd.training.sources import Batch, WithoutGenerator

_FAILS = "the order of batches fails:"
_Rows = tuple[UInt8[Tensor, "images height width channels"], Int[Tensor, " batch"]]
"""Pixels and rows of a batch of stored images."""


class ShardSource(WithoutGenerator):
    """The images of one or more selections in an endless order of full batches.

    The rows of the selections follow one another. If images must be decoded, the next batch is prepared while the
    student learns from the current one. If the order follows the student, the current batch decides the next one, and
    nothing is prepared.
    """

    def __init__(
        self,
        selections: Sequence[Shards],
        order: Order,
        resident: "Resident | None" = None,
        crops: Crops | None = None,
    ) -> None:
        """Open the source. With `resident`, pixels stay on its device after their first use.

        With `crops`, every image is a random window of its file.
        """
        self._selections, self._order, self._position, self._crops = list(selections), order, 0, crops
        self._following = order if isinstance(order, Following) else None
        self._rows, self._resident = JoinedRows(map(len, selections)), resident
        ahead = any(shards.encoded for shards in selections) and not self.follows
        self._reader = ThreadPoolExecutor(1) if ahead else None
        self._ahead: tuple[int, Share | None, Future[_Rows]] | None = None

    @property
    def images(self) -> int:
        """Number of images of all selections."""
        return len(self._rows)

    @property
    def follows(self) -> bool:
        """Whether the order follows the student."""
        return self._following is not None

    def seen(self, rows: Int[Tensor, " batch"], values: Float[Tensor, " batch"]) -> None:
        """Pass the divergence on to the order."""
        if self._following is not None:
            with Foreign(_FAILS, self._order):
                self._following.seen(rows.numpy(), values)

    def sample(self, count: int, share: Share | None = None) -> Batch:
        """Return the next `count` images. With `share`, the pixels are only those of the share."""
        position, self._position = self._position, self._position + count
        if self._reader is None:
            return Batch(*self._batch(position, count, share), share)
        batch = Batch(*self._read(position, count, share), share)
        self._ahead = (self._position, share, self._reader.submit(self._batch, self._position, count, share))
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the endless order, and the state of an order that follows the student."""
        order = {"order": self._following.state_dict()} if self._following is not None else {}
        return {"position": self._position, **order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from `state_dict`."""
        self._position = int(state["position"])
        if self._following is not None:
            self._following.load_state_dict(state["order"])

    def _read(self, position: int, count: int, share: Share | None) -> _Rows:
        """Return the batch at a position, using images that were read ahead.

        In a mixture, the number of images differs from step to step.
        """
        if self._ahead is None:
            return self._batch(position, count, share)
        start, ahead, future = self._ahead
        pixels, rows = future.result()  # always wait, because one thread at a time reads
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
        """Raise RequestError if a user's order returns something other than rows."""
        is_rows = isinstance(rows, np.ndarray) and rows.shape == (count,) and rows.dtype.kind in "iu"
        if not is_rows or (count and not 0 <= rows.min() <= rows.max() < self.images):  # type: ignore[attr-defined]
            raise RequestError(
                f"the order of batches gives other than {count} whole numbers from 0 to {self.images - 1} as rows"
            )

    def _pixels(
        self, rows: Int[np.ndarray, " batch"], windows: Sequence[Window] | None = None
    ) -> UInt8[np.ndarray, "batch height width channels"]:
        if not len(rows):  # in a mixture, a share may have no image of this source
            return self._selections[0].pixels(rows)
        parts = []
        for number, where, local in self._rows.split(rows):
            some = None if windows is None else [windows[i] for i in where.tolist()]
            parts.append((where, self._selections[number].pixels(local, some)))
        if len(parts) == 1:
            return parts[0][1]
        out = np.empty((len(rows), *parts[0][1].shape[1:]), dtype=np.uint8)
        for where, pixels in parts:
            out[where] = pixels
        return out


class Resident:
    """Pixels on a device, from which batches are gathered. Each image is read and copied at its first use.

    So a training starts at once, whatever the number of images. From the second pass on, nothing is read, decoded or
    copied. The pixels take their uint8 size in the device's memory.
    """

    def __init__(self, images: int, size: int, channels: int, device: torch.device) -> None:
        self._pixels = torch.empty((images, size, size, channels), dtype=torch.uint8, device=device)
        self._here = np.zeros(images, dtype=bool)

    def __call__(
        self,
        rows: Int[np.ndarray, " batch"],
        read: Callable[[Int[np.ndarray, " some"]], UInt8[np.ndarray, "some height width channels"]],
    ) -> UInt8[Tensor, "batch height width channels"]:
        """Return the pixels of some rows. `read` returns those that are not on the device yet."""
        new = np.unique(rows[~self._here[rows]])
        if len(new):
            pixels, where = torch.from_numpy(read(new)), torch.from_numpy(new)
            device = self._pixels.device  # no call here waits for the device
            self._pixels[where.to(device, non_blocking=True)] = pixels.to(device, non_blocking=True)
            self._here[new] = True
        return self._pixels[torch.from_numpy(rows).to(self._pixels.device, non_blocking=True)]
