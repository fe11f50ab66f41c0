"""`.npz`: the pixels are memory-mapped where they lie inside the zip file, and their pages given back once read."""

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
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Int64, UInt8

from dfkd.data.readers.reader import LAYOUTS, NoImages, as_labels, as_nhwc, image_shape, row_numbers
from dfkd.system.console import say
from dfkd.system.errors import RequestError

_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError, EOFError, RuntimeError),
    *(SyntaxError, TypeError, KeyError, MemoryError),
)
"""What a damaged, encrypted or strangely compressed zip file raises and numpy's headers, beside ValueError, OSError."""
_IMAGES, _LABELS = ("images", "x", "data"), ("labels", "y")
_AROUND = 1 << 16
"""Bytes that Linux maps around one that is read."""
_ROWS_AT_ONCE = 1024
"""Rows that are copied before their pages go: of rows that lie far apart that is 64 MB."""


class NpzReader:
    """The array `images`, `x` or `data` (uint8) and, where labels are wanted, `labels` or `y`."""

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
        self.identity: dict[str, Any] = {"format": "npz", "members": contents}

    def __len__(self) -> int:
        return self._pixels.shape[0]

    def read(self, indices: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w c"]:
        """The pixels, copied out of the file."""
        return as_nhwc(self._pixels.read(indices))

    def members(self, indices: Int64[np.ndarray, " n"]) -> list[str]:
        """`#17`."""
        return row_numbers(indices)

    def labels(self) -> Int64[np.ndarray, " images"]:
        """The label array; in the flat layout (the downsampled-ImageNet release) labels start at 1 and are shifted.

        Raises: RequestError where there is none, or one that does not fit.
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
    """An array of uint8 in a file, memory-mapped. What was read does not stay in this process's memory."""

    def __init__(self, file: io.BufferedIOBase, offset: int, shape: tuple[int, ...], fortran: bool) -> None:
        self.shape, self._before = shape, offset % mmap.ALLOCATIONGRANULARITY
        length, start = self._before + math.prod(shape), offset - self._before
        self._mapping = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=start)
        # A plain ndarray: indexing a np.memmap makes another one, which costs more than the copy of a small batch.
        self._rows = np.ndarray(shape, np.uint8, self._mapping, self._before, order="F" if fortran else "C")

    def read(self, indices: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n *stored"]:
        """Copies of some rows."""
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
        """Take the pages of these rows and those between out of this process; in the system's cache they stay.

        A mapped file would else be resident to its last page, as if this process needed the memory.
        """
        if not hasattr(mmap, "MADV_DONTNEED"):  # Windows
            return
        start, end = 0, len(self._mapping)  # in Fortran's order any row touches all pages
        if self._rows.flags.c_contiguous:
            row = math.prod(self.shape[1:])
            start, end = self._before + first * row, self._before + (last + 1) * row
        start = max(start - _AROUND, 0) // mmap.PAGESIZE * mmap.PAGESIZE
        self._mapping.madvise(mmap.MADV_DONTNEED, start, min(end + _AROUND, len(self._mapping)) - start)


_LONGEST_HEADER = 1 << 16


def _map(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> _Stack:
    """The array of one member, memory-mapped: in the zip file where it is stored, else in a copy without a name, which
    goes when the array goes. Raises: ValueError for anything but uint8 pixels.
    """
    with path.open("rb") as whole:
        if member.compress_type == zipfile.ZIP_STORED:
            whole.seek(member.header_offset + 26)
            name_length, extra_length = struct.unpack("<HH", whole.read(4))
            whole.seek(name_length + extra_length, 1)
            return _map_npy(whole, member.file_size)
        with archive.open(member) as file:
            shape, _ = _header(file)  # refuse before gigabytes are unpacked
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
    """Map the `.npy` of `length` bytes that begins where `file` stands."""
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
    """Read a `.npy` header: shape and whether it is in Fortran order. Raises: ValueError unless it is a uint8 stack."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype != np.uint8:
        raise ValueError(f"it holds {dtype}, not uint8; write pixels of 0 to 255 as uint8")
    if len(shape) < 2 or min(shape) < 0:
        raise ValueError(f"shape {list(shape)} is not a stack of images of {LAYOUTS}")
    return shape, fortran


def _or(names: Any) -> str:
    return " or ".join(map(repr, names)) or "nothing"
