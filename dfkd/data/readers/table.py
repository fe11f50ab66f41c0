"""Reader of the image column and the labels of a table."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64, UInt8

from dfkd.data.readers.chunks import Chunks
from dfkd.data.readers.reader import NoImages, Reader, Unreadable, as_labels, as_nhwc, image_shape
from dfkd.system.errors import RequestError
from dfkd.system.joined_rows import JoinedRows

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGES = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "x", "data", "pixels")
_LABELS = ("label", "labels", "y", "cls", "fine_label", "target", "class")


class TableReader(Reader):
    """Reader of a table's image column.

    Images are encoded (`{bytes, path}` or binary) or raw (`datasets.Array3D`, or lists of uint8).
    """

    def __init__(
        self, name: str, chunks: Chunks, identity: dict[str, Any], follow: Sequence[str | os.PathLike[str]] = ()
    ) -> None:
        """Open the table `chunks`.

        Rows may hold a path instead of bytes. Such a file is read only if it is in a folder of `follow`. Otherwise a
        table from elsewhere could choose which files of this machine are opened.
        """
        self._name, self._chunks, self.identity = name, chunks, identity
        self._follow = tuple(os.path.abspath(folder) for folder in follow)
        if min(chunks.lengths, default=0) < 0:
            raise RequestError(f"{name!r} is damaged (a part of {min(chunks.lengths)} rows); fetch or write it again")
        self._rows = JoinedRows(chunks.lengths)
        self._even: set[int] = set()
        if not len(self):
            raise NoImages(f"{name!r} holds no images: it has no rows")
        self._column = self._find(_IMAGES, "image")
        self.shape = self._raw_shape()

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w c"] | list[object]:
        """Return pixels, gathered from views of the column's memory, or each row's encoded bytes."""
        if self.shape is None:
            items: list[object] = [None] * len(indices)
            for piece, positions, local in self._rows.split(indices):
                taken = _bytes_of(self._load(piece), local)
                for position, cell in zip(positions.tolist(), taken.to_pylist(), strict=True):
                    items[position] = self._encoded(cell)
            return items
        parts = [(positions, self._pixels(piece), local) for piece, positions, local in self._rows.split(indices)]
        pixels = np.empty((len(indices), *self.shape), np.uint8)  # after _pixels has checked the shape
        for positions, stack, local in parts:
            pixels[positions] = as_nhwc(stack[local])
        return pixels

    def labels(self) -> Int64[np.ndarray, " images"]:
        """Return the label column. Raises: RequestError if there is none or its values are not integers."""
        import pyarrow as pa

        column, values = self._label_column()
        if (words := _words(values)) is not None:
            hint = "--classes FILE names the model's classes, or write each class as its number"
            raise RequestError(f"labels of {self._name!r}: column {column!r} holds words ({words}, ...); {hint}")
        try:
            return as_labels(values.to_numpy(), len(self), f"column {column!r}")
        except (ValueError, pa.ArrowException) as error:
            raise RequestError(f"labels of {self._name!r}: {error}") from error

    def named_labels(self) -> tuple[list[str], Int64[np.ndarray, " images"]] | None:
        """Return the names of the classes and each image's position in them, or None if the table has no names."""
        column, values = self._label_column()
        if _words(values) is not None:
            names, positions = np.unique(values.to_pylist(), return_inverse=True)
            return names.tolist(), positions.astype(np.int64)
        try:
            about = json.loads((self._chunks.schema.metadata or {})[b"huggingface"])
            listed = about["info"]["features"][column]["names"]
        except (KeyError, ValueError, TypeError):
            return None
        labels = self.labels()
        fits = isinstance(listed, list) and all(isinstance(name, str) for name in listed)
        return (listed, labels) if fits and len(labels) and 0 <= labels.min() <= labels.max() < len(listed) else None

    def _label_column(self) -> tuple[str, "pa.ChunkedArray"]:
        """Return name and values of the label column. Raises: RequestError if there is none or rows lack a label."""
        import pyarrow as pa

        column = self._find(_LABELS, "label")
        try:
            values = self._chunks.whole(column)
            if values.null_count:
                row = values.is_null().index(True).as_py()
                raise ValueError(f"column {column!r} has no label in {values.null_count:,} rows, the first is #{row}")
        except RequestError:
            raise
        except (ValueError, OSError, KeyError, pa.ArrowException) as error:
            raise RequestError(f"labels of {self._name!r}: {error}") from error
        return column, values

    def _find(self, names: Sequence[str], kind: str) -> str:
        """Return the column that matches the first of `names` that exists, without regard to case."""
        columns = {column.lower(): column for column in reversed(self._chunks.schema.names)}
        found = next((columns[name] for name in names if name in columns), None)
        if found is None:
            listed = ", ".join(self._chunks.schema.names) or "none"
            raise RequestError(f"{self._name!r} has no {kind} column ({', '.join(names)}); its columns are {listed}")
        if self._chunks.schema.names.count(found) > 1:
            raise RequestError(f"{self._name!r} has several columns {found!r}; write it with one")
        return found

    def _load(self, index: int) -> "pa.Array":
        """Return the images of one piece. Raises: RequestError if the piece cannot be read."""
        import pyarrow as pa

        try:
            array = self._chunks.load(self._column, index)
            if len(array) != self._chunks.lengths[index]:
                raise ValueError(f"{len(array)} rows, not {self._chunks.lengths[index]}")
            return array
        except RequestError:  # from an object store; the message names the file
            raise
        except (ValueError, OSError, KeyError, pa.ArrowException) as error:
            raise RequestError(f"{self._name!r} is damaged ({error}); fetch or write it again") from error

    def _encoded(self, cell: bytes | dict[str, Any] | None) -> object:
        """Return the bytes of one cell, or of the file that the cell names."""
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        path = cell.get("path") if isinstance(cell, dict) else None
        if data is not None:
            return data
        if not isinstance(path, str):
            return Unreadable("there is no image in this row")
        absolute = os.path.abspath(path)
        if not any(os.path.commonpath([absolute, folder]) == folder for folder in self._follow):
            return Unreadable("there is only a path in this row, and no image")
        try:
            return Path(absolute).read_bytes()
        except OSError as error:
            return Unreadable(f"its file cannot be opened: {error.strerror}")

    def _raw_shape(self) -> tuple[int, int, int] | None:
        """Return height, width and channels of raw pixels, None for encoded images. Raises: RequestError for others."""
        import pyarrow as pa

        kind = self._chunks.schema.field(self._column).type
        storage = _storage(kind)
        if pa.types.is_dictionary(storage):
            storage = storage.value_type
        if _is_binary(storage) or (pa.types.is_struct(storage) and storage.get_field_index("bytes") >= 0):
            return None
        leaf = storage
        while _is_list(leaf):
            leaf = leaf.value_type
        if leaf is storage or leaf != pa.uint8():
            raise RequestError(
                f"column {self._column!r} of {self._name!r} is {kind}, not images: encoded bytes, or lists of uint8"
            )
        first = next(i for i, length in enumerate(self._chunks.lengths) if length)
        self._stored = getattr(kind, "shape", None) or ()
        if not self._stored or None in self._stored:
            value = self._load(first)[0].as_py()
            kind = None
        self._fixed = kind is not None
        try:
            self._stored = self._stored if self._fixed else np.shape(value)
            return image_shape(tuple(self._stored))
        except ValueError as error:
            raise RequestError(f"column {self._column!r} of {self._name!r}: {error}") from error

    def _pixels(self, index: int) -> UInt8[np.ndarray, "n *stored"]:
        """Return a piece's pixels in their stored layout, as a view of the piece's memory."""
        array = self._load(index)
        array, rows = getattr(array, "storage", array), len(array)
        even = self._fixed or index in self._even
        good = True
        for extent in self._stored:
            if not _is_list(array.type):  # a tensor's storage is flat
                break
            good = good and (even or _lengths_are(array, extent))
            array = array.flatten()
        if not good or array.null_count or len(array) != rows * math.prod(self._stored):
            raise RequestError(
                f"column {self._column!r} of {self._name!r} holds raw images of several shapes, or none in some rows; "
                f"the first is {list(self._stored)}: store them encoded instead"
            )
        self._even.add(index)
        return array.to_numpy(zero_copy_only=True).reshape(rows, *self._stored)


def _bytes_of(array: "pa.Array", rows: Int64[np.ndarray, " n"]) -> "pa.Array":
    """Return some rows of a column of encoded images. Arrow's `take` does not support binary views."""
    import pyarrow as pa

    if pa.types.is_binary_view(array.type):
        return pa.array([array[row].as_py() for row in rows.tolist()], pa.large_binary())
    return array.take(rows)


def _words(values: "pa.ChunkedArray") -> str | None:
    """Return the first value of a text column, or None for other columns."""
    import pyarrow as pa

    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return repr(values[0].as_py()) if text else None


def _storage(kind: "pa.DataType") -> "pa.DataType":
    return getattr(kind, "storage_type", kind)


def _is_binary(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_list(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _lengths_are(array: "pa.Array", extent: int) -> bool:
    """Return whether every list of `array` has `extent` elements."""
    import pyarrow as pa

    if pa.types.is_fixed_size_list(array.type):
        return array.type.list_size == extent
    return bool((np.diff(array.offsets.to_numpy()) == extent).all())
