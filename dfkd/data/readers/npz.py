"""Reader of `.npz` files. Pixels are memory-mapped within the zip file, and their pages are released after reading."""

import io
import lzma
import math
import mmap
import shutil
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Int64, UInt8

from dfkd.data.readers.reader import LAYOUTS, NoImages, Reader, as_labels, as_nhwc, image_shape
from dfkd.system.console import say
from dfkd.system.errors import RequestError

_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError, EOFError, RuntimeError),
    *(SyntaxError, TypeError, KeyError, MemoryError),
)
"""Exceptions of zip files and numpy headers that are damaged, encrypted or compressed in an unknown way."""
_IMAGES, _LABELS = ("images", "x", "data"), ("labels", "y")
_AROUND = 1 << 16
"""Number of bytes that Linux maps around an accessed byte."""
_ROWS_AT_ONCE = 1024
"""Number of rows that are copied before their pages are released. Scattered rows take up to 64 MB."""


class NpzReader(Reader):
    """Reader of the array `images`, `x` or `data` (uint8), and of the labels `labels` or `y`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = {
                    m.filename.removesuffix(".npy"): m for m in archive.infolist() if m.filename.endswith(".npy")
                }
                self._members = sorted(members)
                name = next((n for n in _IMAGES if n in members), None)
                if name is None:
                    raise RequestError(f"{str(path)!r} has no array {_or(_IMAGES)}; it has {_or(self._members)}")
                self._pixels = _map(archive, members[name], path)
            self.shape = image_shape(self._pixels.shape[1:])
        except NoImages as error:
            raise NoImages(f"images of {str(path)!r}: {error}") from error
        except RequestError:
            raise
        except ValueError as error:
            raise RequestError(f"images of {str(path)!r}: {error}") from error
        except _BROKEN as error:
            raise RequestError(f"{str(path)!r} is not a whole .npz file ({error}); fetch or write it again") from error
        contents = [[m.filename, m.CRC, m.file_size] for _, m in sorted(members.items())]
        self.identity = {"format": "npz", "members": contents}

    def __len__(self) -> int:
        return self._pixels.shape[0]

    def read(self, indices: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w c"]:
        """Return a copy of the pixels."""
        return as_nhwc(self._pixels.read(indices))

    def labels(self) -> Int64[np.ndarray, " images"]:
        """Return the label array.

        In the flat layout (the downsampled-ImageNet release), labels that start at 1 are shifted to start at 0.
        Raises: RequestError if there are no labels or they do not fit the images.
        """
        name = next((n for n in _LABELS if n in self._members), None)
        if name is None:
            raise RequestError(f"{str(self._path)!r} has no labels {_or(_LABELS)}; it has {_or(self._members)}")
        try:
            with np.load(self._path, allow_pickle=False) as arrays:
                labels = as_labels(arrays[name], len(self), name)
        except (ValueError, *_BROKEN) as error:
            raise RequestError(f"labels of {str(self._path)!r}: {error}") from error
        if len(self._pixels.shape) == 2 and labels.min() >= 1:
            say(f"{self._path.name}: labels start at 1 in the flat layout; 1 is subtracted")
            return labels - 1
        return labels


class _Stack:
    """Memory-mapped uint8 array in a file. Pages that were read do not stay in the process's memory."""

    def __init__(self, file: io.BufferedIOBase, offset: int, shape: tuple[int, ...], fortran: bool) -> None:
        self.shape, self._before = shape, offset % mmap.ALLOCATIONGRANULARITY
        length, start = self._before + math.prod(shape), offset - self._before
        self._mapping = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=start)
        # A plain ndarray: indexing an np.memmap makes another memmap, which costs more than copying a small batch.
        self._rows = np.ndarray(shape, np.uint8, self._mapping, self._before, order="F" if fortran else "C")

    def read(self, indices: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n *stored"]:
        """Return copies of some rows."""
        if len(indices) > _ROWS_AT_ONCE:
            rows = np.empty((len(indices), *self.shape[1:]), np.uint8)
            for start in range(0, len(indices), _ROWS_AT_ONCE):
                some = slice(start, start + _ROWS_AT_ONCE)
                rows[some] = self.read(indices[some])
            return rows
        copied = self._rows[indices]
        if len(indices):
            self._give_back(int(indices.min()), int(indices.max()))
        return copied

    def _give_back(self, first: int, last: int) -> None:
        """Release the pages of rows `first` to `last` from this process. The pages stay in the system's page cache.

        Otherwise the whole mapped file would count as resident memory of the process.
        """
        if not hasattr(mmap, "MADV_DONTNEED"):  # on Windows
            return
        start, end = 0, len(self._mapping)  # in Fortran order any row touches all pages
        if self._rows.flags.c_contiguous:
            row = math.prod(self.shape[1:])
            start, end = self._before + first * row, self._before + (last + 1) * row
        start = max(start - _AROUND, 0) // mmap.PAGESIZE * mmap.PAGESIZE
        self._mapping.madvise(mmap.MADV_DONTNEED, start, min(end + _AROUND, len(self._mapping)) - start)


_LONGEST_HEADER = 1 << 16


def count_images(path: Path) -> int:
    """Return the number of images that a file states in its header. Raises: RequestError for no such file."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(f"{name}.npy" for name in _IMAGES if f"{name}.npy" in archive.namelist())
            with archive.open(name) as file:
                return _header(file)[0][0]
    except (StopIteration, ValueError, OSError, *_BROKEN) as error:
        raise RequestError(f"{str(path)!r} is not a whole .npz file ({error}); fetch or write it again") from error


def _map(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> _Stack:
    """Return one member's array, memory-mapped. Raises: ValueError for anything but uint8 pixels.

    A stored member is mapped in the zip file. A compressed member is unpacked to an unnamed temporary file, which is
    removed with the array.
    """
    with path.open("rb") as whole:
        if member.compress_type == zipfile.ZIP_STORED:
            whole.seek(member.header_offset + 26)
            name_length, extra_length = struct.unpack("<HH", whole.read(4))
            whole.seek(name_length + extra_length, 1)
            return _map_npy(whole, member.file_size)
        with archive.open(member) as file:
            shape, _ = _header(file)  # refuses before gigabytes are unpacked
            if not 0 <= member.file_size - math.prod(shape) <= _LONGEST_HEADER:
                raise ValueError(f"shape {list(shape)} does not fit its {member.file_size} bytes; write the file again")
        say(f"{path.name} is compressed: unpacking {member.file_size / 1e9:.2f} GB to {tempfile.gettempdir()}")
        with tempfile.TemporaryFile() as spilled:
            try:
                with archive.open(member) as file:
                    shutil.copyfileobj(file, spilled, 1 << 20)
                spilled.flush()
            except OSError as error:
                raise RequestError(
                    f"{str(path)!r} cannot be unpacked to {tempfile.gettempdir()}: {error.strerror}; "
                    "set TMPDIR to a larger disk, or write it with np.savez, not np.savez_compressed"
                ) from error
            spilled.seek(0)
            return _map_npy(spilled, member.file_size)


def _map_npy(file: io.BufferedIOBase, length: int) -> _Stack:
    """Return the memory-mapped array of a `.npy` member of `length` bytes that begins at the position of `file`."""
    start = file.tell()
    shape, fortran = _header(file)
    offset = file.tell()
    size = math.prod(shape)
    if size != length - (offset - start):
        raise ValueError(f"shape {list(shape)} does not fit its {length} bytes; write the file again")
    if size == 0:
        raise NoImages(f"it holds no images, its shape is {list(shape)}")
    return _Stack(file, offset, shape, fortran)


def _header(file: io.BufferedIOBase | IO[bytes]) -> tuple[tuple[int, ...], bool]:
    """Return the shape from a `.npy` header, and whether the array is in Fortran order.

    Raises: ValueError unless the array is a stack of uint8 images.
    """
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype != np.uint8:
        raise ValueError(f"it holds {dtype}, not uint8; write pixels of 0 to 255 as uint8")
    if len(shape) < 2 or min(shape) < 0:
        raise ValueError(f"shape {list(shape)} is not a stack of images of {LAYOUTS}")
    return shape, fortran


def _or(names: Iterable[str]) -> str:
    return " or ".join(map(repr, names)) or "nothing"
