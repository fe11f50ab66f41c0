"""What the pool needs of a format: the `Reader` protocol, and what several readers share."""

from array import array
from math import isqrt
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8

from dfkd.system.errors import RequestError
from dfkd.system.remote import RemoteFile

IMAGE_SUFFIXES = frozenset(
    (*(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),)
)
LAYOUTS = "[h,w,c] or [c,h,w] (c is 1, 3 or 4), [h,w] or flat [3*s*s]"
_CHANNELS = (1, 3, 4)


class Unreadable(Exception):
    """Why one image cannot be had. The text goes into manifests: it names no absolute path."""


class NoImages(RequestError):
    """A file or folder is whole, and holds no image; beside others that hold some it is left out."""


@runtime_checkable
class Reader(Protocol):
    """Random access to the images of one file, folder or data set; many threads may call `read` and `members`."""

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of raw pixels; None where images are encoded, each of its own size."""

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the content, as JSON; no absolute paths."""

    def __len__(self) -> int: ...

    def read(self, indices: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w c"] | list[object]:
        """Raw pixels, or for each index a file's bytes, a PIL image, or the `Unreadable` that says what is wrong."""

    def members(self, indices: Int64[np.ndarray, " n"]) -> list[str]:
        """What follows the reader's name in an origin: `#17` or `/folder/a.png`."""

    def labels(self) -> Int64[np.ndarray, " images"]:
        """Raises: RequestError where there are none."""


def file_state(path: Path | RemoteFile) -> dict[str, int | str]:
    """The identity of a file that is too large to be hashed: its size in bytes and when it was written."""
    if isinstance(path, RemoteFile):
        return path.state()
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def row_numbers(indices: Int64[np.ndarray, " n"]) -> list[str]:
    """`members` of a reader whose images are told apart by their position alone."""
    return [f"#{i}" for i in indices.tolist()]


def as_nhwc(batch: UInt8[np.ndarray, "n *stored"]) -> UInt8[np.ndarray, "n h w c"]:
    """Images in one of the known layouts as [n, height, width, channels]; a view where that can be.

    Raises: ValueError for another layout.
    """
    n, stored = len(batch), batch.shape[1:]
    side = isqrt(stored[0] // 3) if len(stored) == 1 else 0
    if min(stored, default=0) > 0:
        if len(stored) == 2:
            return batch[..., None]
        if len(stored) == 3 and stored[2] in _CHANNELS:
            return batch
        if len(stored) == 3 and stored[0] in _CHANNELS:
            return np.ascontiguousarray(batch.transpose(0, 2, 3, 1))
        if stored == (3 * side * side,):  # the downsampled-ImageNet release: red, green and blue planes
            return np.ascontiguousarray(batch.reshape(n, 3, side, side).transpose(0, 2, 3, 1))
    raise ValueError(f"the shape of one image, {list(stored)}, is not {LAYOUTS}")


def image_shape(stored: tuple[int, ...]) -> tuple[int, int, int]:
    """Height, width and channels of images that are `stored` in one of the known layouts. Raises: ValueError."""
    height, width, channels = as_nhwc(np.empty((0, *stored), np.uint8)).shape[1:]
    return height, width, channels


def as_labels(values: Any, count: int, where: str) -> Int64[np.ndarray, " images"]:
    """Class indices, one an image, also from whole numbers as floats or from truth values.

    Raises: ValueError where `values` are something else.
    """
    labels = np.asarray(values)
    if labels.dtype.kind == "f" and np.array_equal(labels, np.trunc(labels)) and (np.abs(labels) < 2**53).all():
        labels = labels.astype(np.int64)  # as other tools write whole numbers beside missing ones
    if labels.dtype == bool:
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iu" or labels.size != count:
        raise ValueError(f"{where} is {labels.dtype}{list(labels.shape)}, not {count} integers")
    return labels.reshape(count).astype(np.int64)


class Names:
    """A list of byte strings in two flat buffers: ten million file names take their length, not a gigabyte."""

    def __init__(self) -> None:
        self._text, self._ends = bytearray(), array("q", [0])

    def append(self, name: bytes) -> None:
        """Add one name."""
        self._text += name
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        return bytes(self._text[self._ends[index] : self._ends[index + 1]])


def printable(name: bytes) -> str:
    """A file's name as text that can be stored anywhere, also where it is not UTF-8."""
    return name.decode("utf-8", "backslashreplace")
