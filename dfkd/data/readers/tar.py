"""Reader of WebDataset `.tar` files. Headers are read once, and their positions are kept in the cache."""

import io
import json
import os
import posixpath
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from dfkd.data.readers import content
from dfkd.data.readers.reader import IMAGE_SUFFIXES, NoImages, Reader, Unreadable, file_state, printable
from dfkd.data.readers.tar_member import Member, bytes_of, is_apple_double, key_of, member_at, plain
from dfkd.system.checked_parquet import Damaged, read_columns, write_columns
from dfkd.system.checksums import sealed, unsealed
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.system.files import cache_folder, hash_of, write_json
from dfkd.system.remote import AHEAD, RemoteFile

_MOST_EMPTY = 1 << 20
"""Largest size in bytes of an archive without members: blocks of zeros that fill one record."""
_MOST_STEPS = 8
"""Largest number of links to follow. Links may form a cycle."""
_MOST_KINDS = 8
"""Largest number of different name endings by which the images of one sample are told apart.

With more endings, the images are a collection under one name.
"""
_MOST_OPEN = 32
"""Number of archives whose header positions are kept in memory, at 8 bytes per image."""
_NEAR = 1 << 18
"""Largest gap in bytes that is read from an object store rather than skipped with another request."""
_MOST_AHEAD = 4 * AHEAD
_RULES = 4
"""Version of the rules by which a member is an image. An index that was made under other rules is not read."""


class _Headers(NamedTuple):
    """Positions of the images' headers, and the position of the target's header for each image that is a link."""

    positions: Int64[np.ndarray, " images"]
    linked: dict[int, int]


class TarReader(Reader):
    """Reader of the image members of an uncompressed tar file.

    Positions are read from the cache, names from the headers. `member` names the one image of each WebDataset sample
    that is taken, by the name after the key: `jpg`, `mask.png`.
    """

    def __init__(self, path: Path | RemoteFile, member: str = "") -> None:
        self._path, self._only = path, member.lower()
        self.identity = {"format": "tar", **file_state(path)}
        if member:
            self.identity["member"] = self._only
        self._kept = cache_folder() / "tars" / f"{hash_of([_RULES, _absolute(path), self.identity])}.parquet"
        self._held: _Headers | None = None
        headers, notes, self.left_out = self._index()
        self._count = len(headers.positions)
        if not len(self):
            wanted = f"named KEY.{member}" if member else f"({' '.join(sorted(IMAGE_SUFFIXES))})"
            raise NoImages(f"{str(path)!r} holds no images {wanted}")
        for line in notes:
            say(line)

    def __len__(self) -> int:
        return self._count

    def read(self, indices: Int64[np.ndarray, " n"]) -> list[object]:
        """Return each member's bytes."""
        try:
            headers = self._headers()
            with self._opened(headers, indices) as file:
                positions = headers.positions[indices].tolist()
                return [bytes_of(file, headers.linked.get(position, position)) for position in positions]
        except OSError as error:  # the file existed when the pool was opened
            return [Unreadable(f"cannot be read from its tar file: {error.strerror}")] * len(indices)

    def members(self, indices: Int64[np.ndarray, " n"]) -> list[str]:
        """Return `/key.jpg` for each member.

        Raises: RequestError if headers have changed since the archive was first opened.
        """
        headers = self._headers()
        positions = headers.positions[indices].tolist()
        try:
            with self._opened(headers, indices) as file:
                names = [member_at(file, position, check=True).name or "" for position in positions]
        except tarfile.TarError as error:
            raise RequestError(
                f"{str(self._path)!r} has changed since it was first opened ({error}); give the command again"
            ) from None
        return [f"/{printable(name.encode('utf-8', 'surrogateescape'))}" for name in names]

    def labels(self) -> Int64[np.ndarray, " images"]:
        """Return the number in the `.cls` member of each image.

        The member has the image's name up to the last dot, or else the image's key.
        Raises: RequestError if a label is missing, or if there are several that differ.
        """
        classes: dict[str, int] = {}
        of_key: dict[str, set[int]] = {}
        images: list[tuple[str, str]] = []
        links: dict[str, str] = {}
        positions = self._headers().positions

        def add(name: str, label: int) -> None:
            stem = posixpath.splitext(name)[0]
            if classes.setdefault(stem, label) != label:
                raise RequestError(
                    f"{name!r} is twice in {str(self._path)!r}, in classes {classes[stem]} and {label}; keep one"
                )
            of_key.setdefault(key_of(name)[0], set()).add(label)

        with _binary(self._path) as file:
            for position, member in self._scan():
                name = member.name or ""
                if content.suffix_of(name) == ".cls":
                    if member.link is not None:
                        links[name] = member.link
                        continue
                    file.seek(member.start)
                    add(name, self._class(name, file.read(member.size)))
                elif len(images) < len(self) and positions[len(images)] == position:
                    images.append((posixpath.splitext(name)[0], key_of(name)[0]))
        for name, target in links.items():  # a link may come before what it leads to
            for _ in range(_MOST_STEPS):
                target = links.get(target, target)
            if (stem := posixpath.splitext(target)[0]) in classes:
                add(name, classes[stem])
        return np.array([self._label(classes, of_key, *image) for image in images], np.int64)

    def _class(self, name: str, text: bytes) -> int:
        try:
            return int(text)
        except ValueError:
            raise RequestError(f"{name!r} in {str(self._path)!r} is not a class number, such as 3") from None

    def _label(self, classes: Mapping[str, int], of_key: Mapping[str, set[int]], stem: str, key: str) -> int:
        """Return the class of an image. The whole name distinguishes keys that contain dots, as in `22.05.png`."""
        if stem in classes:
            return classes[stem]
        labels = of_key.get(key, set())
        if not labels:
            raise RequestError(f"{str(self._path)!r} has no labels: there is no member {key + '.cls'!r}")
        if len(labels) > 1:
            raise RequestError(f"{str(self._path)!r} has several labels for {stem!r}; name its label {stem + '.cls'!r}")
        return next(iter(labels))

    def _opened(self, headers: _Headers, indices: Int64[np.ndarray, " n"]) -> io.RawIOBase:
        """Open the archive. From an object store, nearby members are fetched with one request."""
        if isinstance(self._path, Path):
            return self._path.open("rb", buffering=0)
        ends = np.append(headers.positions, self._path.stat().st_size)
        span = int(ends[indices.max() + 1] - ends[indices.min()]) if len(indices) else 0
        near = span <= len(indices) * _NEAR and span <= _MOST_AHEAD
        return self._path.open(ahead=span if near else _NEAR)

    def _headers(self) -> _Headers:
        """Return the positions of the images' headers. The positions of recently read archives are in memory."""
        if self._held is None:
            try:
                return _recent_headers(self._kept)
            except Damaged:  # the cache was cleared after the archive was opened
                self._index()
        return self._held or _recent_headers(self._kept)

    def _index(self) -> tuple[_Headers, list[str], dict[str, int]]:
        """Return the positions of the images' headers, notes, and counts of left-out files.

        The index is kept in the cache, because every command opens the whole pool. Without a writable cache, this
        reader keeps the positions in memory.
        """
        said = self._kept.with_suffix(".json")  # written before the index: without this file, the archive has no notes
        with suppress(Damaged, ValueError, RecursionError):  # Damaged stands for a missing file, too
            headers = _read_headers(self._kept)
            others = unsealed(json.loads(said.read_text("utf-8"))) if said.exists() else {"notes": [], "left_out": {}}
            return headers, others["notes"], others["left_out"]
        positions, data, notes, left_out = self._images()
        headers = _Headers(positions, _differing(positions, data))
        try:
            if notes:
                write_json(said, sealed({"notes": notes, "left_out": left_out}))
            write_columns(self._kept, {"position": positions, "data": data})
        except OSError:  # every command then reads the headers again
            self._held = headers
        return headers, notes, left_out

    def _images(
        self,
    ) -> tuple[Int64[np.ndarray, " images"], Int64[np.ndarray, " images"], list[str], dict[str, int]]:
        """Return the positions of the images' headers and of their data's headers, notes, and counts of other files."""
        positions, data, targets = array("q"), array("q"), dict[int, int]()
        left_out, kinds, several, before = Counter[str](), set[str](), 0, ("", "")
        with _binary(self._path) as file:
            for position, member in self._scan():
                if member.link is not None and not targets:
                    targets = self._targets()
                name = member.name or ""
                target, suffix = targets.get(position, position), content.suffix_of(name)
                if not _is_image(file, suffix, target):
                    if suffix not in content.DATA_SUFFIXES:
                        left_out[suffix if target >= 0 else "links to nothing in it"] += 1
                    continue
                sample = key_of(name)
                if sample[0] == before[0]:
                    several += 1
                    if len(kinds) <= _MOST_KINDS:
                        kinds |= {before[1], sample[1]}
                before = sample
                if self._only in ("", sample[1]):
                    positions.append(position)
                    data.append(target)
        notes = [content.note(self._path.name, left_out)] if left_out else []
        again = several >= len(kinds) > 1  # else the endings are parts of names with dots, and each occurs once
        if again and len(kinds) <= _MOST_KINDS and not self._only:
            notes.append(
                f"note: {self._path.name} has samples of several images ({', '.join(sorted(kinds))}), and all are "
                f"taken; '{self._path.name}#{sorted(kinds, key=len)[0]}' takes one member of each sample"
            )
        return np.array(positions, np.int64), np.array(data, np.int64), notes, content.counted(left_out)

    def _targets(self) -> dict[int, int]:
        """Return the position of the target's header for each link, by the position of the link's header.

        The position is -1 for a link to a file outside the archive.
        """
        links = {position: member for position, member in self._scan() if member.link is not None}
        where = {plain(member.name): position for position, member in links.items()}
        wanted = {member.link for member in links.values()}
        where |= {plain(m.name): position for position, m in self._scan() if m.link is None and plain(m.name) in wanted}
        found = {}
        for position, member in links.items():
            end, steps = where.get(member.link or ""), 0
            while end in links and steps < _MOST_STEPS:
                end, steps = where.get(links[end].link or ""), steps + 1
            found[position] = -1 if end is None or end in links else end
        return found

    def _scan(self) -> Iterator[tuple[int, Member]]:
        """Yield header position and member of every regular file and link, except those that macOS adds."""
        end = self._path.stat().st_size
        if 0 < end <= _MOST_EMPTY and not self._path.read_bytes().strip(b"\0"):
            return
        position = 0
        try:
            with _binary(self._path) as file:
                while (member := member_at(file, position, check=True)).next > position:
                    if member.start + member.size > end:
                        raise tarfile.ReadError(f"{member.name!r} is cut short")
                    if member.name is not None and not is_apple_double(member.name):
                        yield position, member
                    position = member.next
        except tarfile.TarError as error:
            raise RequestError(
                f"{str(self._path)!r} is not a whole uncompressed tar file ({error}); fetch it again or unpack its gzip"
            ) from error


def _read_headers(kept: Path) -> _Headers:
    """Return the positions of headers from the cache. Raises: Damaged if there are none."""
    columns = read_columns(kept, ("position", "data"))
    return _Headers(columns["position"], _differing(columns["position"], columns["data"]))


_recent_headers = lru_cache(maxsize=_MOST_OPEN)(_read_headers)


def _is_image(file: io.RawIOBase, suffix: str, position: int) -> bool:
    """Return whether the member at `position` is an image, by suffix or else by its first bytes. -1 is none."""
    if position < 0 or suffix in IMAGE_SUFFIXES or not content.may_be_image(suffix):
        return position >= 0 and suffix in IMAGE_SUFFIXES
    member = member_at(file, position)
    file.seek(member.start)
    return content.is_image(suffix, file.read(min(member.size, content.FIRST)))


def _binary(path: Path | RemoteFile) -> io.RawIOBase:
    return path.open("rb", buffering=0) if isinstance(path, Path) else path.open()


def _absolute(path: Path | RemoteFile) -> str:
    return os.path.abspath(path) if isinstance(path, Path) else path.uri


def _differing(positions: Int64[np.ndarray, " n"], data: Int64[np.ndarray, " n"]) -> dict[int, int]:
    links = np.flatnonzero(positions != data)
    return dict(zip(positions[links].tolist(), data[links].tolist(), strict=True))
