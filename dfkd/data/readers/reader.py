"""`Reader`: what the pool needs of every format. Functions that several readers share."""

from abc import ABC, abstractmethod
from array import array
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from dfkd.system.errors import RequestError
from dfkd.system.remote import RemoteFile

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)
LAYOUTS = "[h,w,c] or [c,h,w] (c is 1, 3 or 4), [h,w] or flat [3*s*s]"
CHANNELS = (1, 3, 4)
"""Numbers of channels that an image may have."""


class Unreadable(Exception):
    """Reason why an image cannot be read. Manifests contain the text, which therefore names no absolute path."""


class NoImages(RequestError):
    """Error for a file or folder that is intact but has no images. Beside others with images, it is left out."""


class Reader(ABC):
    """Random access to the images of a file, folder or data set. `read` and `members` are thread-safe."""

    shape: tuple[int, int, int] | None = None
    """Height, width and channels of raw pixels, or None for encoded images, which differ in size."""
    identity: dict[str, Any]
    """Everything that decides the content, as JSON without absolute paths."""
    left_out: Mapping[str, int] = MappingProxyType({})
    """Numbers of files that are not images, by suffix or another reason."""
    classes_by_name: bool = False
    """Whether the sorted names of the classes are the classes of a model, where `--classes` gives no others."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def read(self, indices: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w c"] | list[object]:
        """Return raw pixels, or a list with a file's bytes, a PIL image or an `Unreadable` for each index."""

    def members(self, indices: Int64[np.ndarray, " n"]) -> list[str]:
        """Return the part of each origin after the reader's name: `#17` or `/folder/a.png`."""
        return [f"#{i}" for i in indices.tolist()]

    @abstractmethod
    def labels(self) -> Int64[np.ndarray, " images"]:
        """Return the labels. Raises: RequestError if there are none."""

    def named_labels(self) -> tuple[list[str], Int64[np.ndarray, " images"]] | None:
        """Return the names of the classes and each image's position in them, or None if the classes have no names."""
        return None


def file_state(path: Path | RemoteFile) -> dict[str, int | str]:
    """Return the identity of a file that is too large to be hashed: its size in bytes and its modification time."""
    if isinstance(path, RemoteFile):
        return path.state()
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def as_nhwc(batch: UInt8[np.ndarray, "n *stored"]) -> UInt8[np.ndarray, "n h w c"]:
    """Return images in one of the known layouts as [n, height, width, channels], as a view if possible.

    Raises: ValueError for another layout.
    """
    n, stored = len(batch), batch.shape[1:]
    side = isqrt(stored[0] // 3) if len(stored) == 1 else 0
    if min(stored, default=0) > 0:
        if len(stored) == 2:
            return batch[..., None]
        if len(stored) == 3 and stored[2] in CHANNELS:
            return batch
        if len(stored) == 3 and stored[0] in CHANNELS:
            return np.ascontiguousarray(batch.transpose(0, 2, 3, 1))
        if stored == (3 * side * side,):  # planes of red, green and blue in the downsampled-ImageNet release
            return np.ascontiguousarray(batch.reshape(n, 3, side, side).transpose(0, 2, 3, 1))
    raise ValueError(f"the shape of one image, {list(stored)}, is not {LAYOUTS}")


def image_shape(stored: tuple[int, ...]) -> tuple[int, int, int]:
    """Return height, width and channels of images `stored` in a known layout. Raises: ValueError as `as_nhwc`."""
    height, width, channels = as_nhwc(np.empty((0, *stored), np.uint8)).shape[1:]
    return height, width, channels


def as_labels(values: Any, count: int, where: str) -> Int64[np.ndarray, " images"]:
    """Return one class index per image. Whole numbers may be given as floats, and classes 0 and 1 as booleans.

    Raises: ValueError if `values` are of another kind or number.
    """
    labels = np.asarray(values)
    if labels.dtype.kind == "f" and np.array_equal(labels, np.trunc(labels)) and (np.abs(labels) < 2**53).all():
        labels = labels.astype(np.int64)  # other tools write whole numbers as floats if some are missing
    if labels.dtype == bool:
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iu" or labels.size != count:
        raise ValueError(f"{where} is {labels.dtype}{list(labels.shape)}, not {count} integers")
    return labels.reshape(count).astype(np.int64)


class Names:
    """Compact list of byte strings in two flat buffers. Ten million file names take little more than their length."""

    def __init__(self) -> None:
        self._text, self._ends = bytearray(), array("q", [0])

    def append(self, name: bytes) -> None:
        """Append a name."""
        self._text += name
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        return bytes(self._text[self._ends[index] : self._ends[index + 1]])


def printable(name: bytes) -> str:
    """Return a file name as text. Bytes that are not UTF-8 are escaped, so that the text can be stored anywhere."""
    return name.decode("utf-8", "backslashreplace")
