"""WebDataset `.tar`: the headers are read once, and where they lie is kept; members by their position after that."""

import os
import tarfile
from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Int64

from dfkd.columns import Damaged, read_columns, write_columns
from dfkd.data.reader import IMAGE_SUFFIXES, NoImages, Unreadable, file_state, printable
from dfkd.errors import RequestError
from dfkd.files import cache_folder, hash_of

_BLOCK = tarfile.BLOCKSIZE
_MOST_EMPTY = 1 << 20
"""Bytes of an archive without members: blocks of zeros, as many as the writer puts in one record."""
_RULES = 2
"""The number of the rules by which a member is an image; an index that was kept under others is not read."""


class _Member(NamedTuple):
    """A member's name, where its bytes lie, and where the next member's header begins; names are None for no file."""

    name: str | None
    start: int
    size: int
    next: int


class TarReader:
    """The image members of one uncompressed tar file. It holds 8 bytes an image: names are read from the headers."""

    shape = None

    def __init__(self, path: Path) -> None:
        self._path = path
        self.identity: dict[str, Any] = {"format": "tar", **file_state(path)}
        self._positions = self._index()
        if not len(self):
            raise NoImages(f"{str(path)!r} holds no images ({' '.join(sorted(IMAGE_SUFFIXES))})")

    def __len__(self) -> int:
        return len(self._positions)

    def read(self, indices: Int64[np.ndarray, " n"]) -> list[object]:
        """Each member's bytes."""
        try:
            with self._path.open("rb", buffering=0) as file:
                return [_bytes(file, position) for position in self._positions[indices].tolist()]
        except OSError as error:  # the file was there when the pool was opened
            return [Unreadable(f"cannot be read from its tar file: {error.strerror}")] * len(indices)

    def members(self, indices: Int64[np.ndarray, " n"]) -> list[str]:
        """`/key.jpg`. Raises: RequestError where there are other headers than when the archive was first opened."""
        positions = self._positions[indices].tolist()
        try:
            with self._path.open("rb", buffering=0) as file:
                names = [_member(file, position, check=True).name or "" for position in positions]
        except tarfile.TarError as error:
            raise RequestError(f"{str(self._path)!r} has changed since it was first opened ({error})") from None
        return [f"/{printable(name.encode('utf-8', 'surrogateescape'))}" for name in names]

    def labels(self) -> Int64[np.ndarray, " images"]:
        """The number in the `.cls` member that shares an image's key. Raises: RequestError where one is missing."""
        classes: dict[str, int] = {}
        keys = []
        with self._path.open("rb", buffering=0) as file:
            for _, member in self._scan():
                key, suffix = _key(member.name or "")
                if suffix == ".cls":
                    file.seek(member.start)
                    text = file.read(member.size)
                    try:
                        classes[key] = int(text)
                    except ValueError:
                        raise RequestError(f"{member.name!r} in {str(self._path)!r} is no class number") from None
                elif suffix in IMAGE_SUFFIXES:
                    keys.append(key)
        missing = next((key for key in keys if key not in classes), None)
        if missing is not None:
            raise RequestError(f"{str(self._path)!r} has no labels: there is no member {missing + '.cls'!r}")
        return np.array([classes[key] for key in keys], np.int64)

    def _index(self) -> Int64[np.ndarray, " images"]:
        """Where the images' headers lie; kept in the cache, for every command opens the whole pool."""
        kept = cache_folder() / "tars" / f"{hash_of([_RULES, os.path.abspath(self._path), self.identity])}.parquet"
        with suppress(Damaged):  # or not there
            return read_columns(kept, ("position",))["position"]
        positions = array("q")
        for position, member in self._scan():
            if PurePosixPath(member.name or "").suffix.lower() in IMAGE_SUFFIXES:
                positions.append(position)
        found = np.array(positions, np.int64)
        with suppress(OSError):  # a cache that cannot be written costs the headers again
            write_columns(kept, {"position": found})
        return found

    def _scan(self) -> Iterator[tuple[int, _Member]]:
        """Yield the header position and the member of every regular file, but for those that macOS adds."""
        end = self._path.stat().st_size
        if 0 < end <= _MOST_EMPTY and not self._path.read_bytes().strip(b"\0"):
            return
        position = 0
        try:
            with self._path.open("rb", buffering=0) as file:
                while (member := _member(file, position, check=True)).next > position:
                    if member.start + member.size > end:
                        raise tarfile.ReadError(f"{member.name!r} is cut short")
                    if member.name is not None and not _is_apple_double(member.name):
                        yield position, member
                    position = member.next
        except tarfile.TarError as error:
            raise RequestError(
                f"{str(self._path)!r} is no whole uncompressed tar file ({error}); fetch it again, or unpack its gzip"
            ) from error


def _bytes(file: BinaryIO, position: int) -> bytes | Unreadable:
    """What the member at `position` holds."""
    try:
        member = _member(file, position, check=True)
    except tarfile.TarError as error:
        return Unreadable(f"cannot be read from its tar file: {error}")
    file.seek(member.start)
    data = file.read(member.size)
    return Unreadable("the tar file ends before it") if len(data) < member.size else data


def _member(file: BinaryIO, position: int, check: bool = False) -> _Member:
    """Read the header at `position`; at the end of the archive `next` is `position`. Raises: tarfile.TarError.

    A plain ustar header is parsed here, ten times as fast as by `tarfile`, which does all others (long names, pax);
    `check` compares its checksum.
    """
    file.seek(position)
    header = file.read(_BLOCK)
    if header[156:157] in (b"0", b"\0") and header[257:262] == b"ustar" and header[124] < 0x80:
        name, prefix = header[:100].rstrip(b"\0"), header[345:500].rstrip(b"\0") if header[262:263] == b"\0" else b""
        try:
            size = int(header[124:136].strip(b" \0") or b"0", 8)
            good = not check or sum(header) - sum(header[148:156]) + 8 * 32 == int(header[148:156].strip(b" \0"), 8)
        except ValueError:
            good = False
        if not good or size < 0:
            raise tarfile.ReadError("a header is damaged")
        full = prefix + b"/" + name if prefix else name
        start = position + _BLOCK
        return _Member(
            _clean(full.decode("utf-8", "surrogateescape")), start, size, start + -(-size // _BLOCK) * _BLOCK
        )
    if not header.strip(b"\0") and position > 0:  # two blocks of zeros, or nothing: the end
        return _Member(None, position, 0, position)
    tarfile.TarInfo.frombuf(header, tarfile.ENCODING, "surrogateescape")  # TarFile takes a broken header for the end
    file.seek(position)
    with tarfile.TarFile(fileobj=file) as tar:
        info = tar.next()
        if info is None:
            return _Member(None, position, 0, position)
        regular = info.isreg() and not info.issparse()
        return _Member(_clean(info.name) if regular else None, info.offset_data, info.size * regular, tar.offset)


def _is_apple_double(name: str) -> bool:
    """Whether a member holds what macOS keeps beside a file (`._a.jpg`), and no image."""
    return name.rpartition("/")[2].startswith("._")


def _clean(name: str) -> str:
    return name.removeprefix("./").lstrip("/")


def _key(name: str) -> tuple[str, str]:
    """WebDataset's key (everything before the base name's first dot) and the last suffix."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0], PurePosixPath(base).suffix.lower()
