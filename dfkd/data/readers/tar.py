"""WebDataset `.tar`: the headers are read once, and where they lie is kept; members by their position after that."""

import json
import os
import posixpath
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Int64

from dfkd.data.readers import content
from dfkd.data.readers.reader import IMAGE_SUFFIXES, NoImages, Unreadable, file_state, printable
from dfkd.system.checked_parquet import Damaged, read_columns, write_columns
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.system.files import cache_folder, hash_of, write_json

_BLOCK = tarfile.BLOCKSIZE
_MOST_EMPTY = 1 << 20
"""Bytes of an archive without members: blocks of zeros, as many as the writer puts in one record."""
_MOST_STEPS = 8
"""From link to link, which may lead round."""
_MOST_SPARSE = 1 << 26
"""Bytes of an image that was stored with holes: they cost an archive nothing, and fill the memory."""
_MOST_KINDS = 8
"""Images of one sample that are told apart by the ends of their names; more are a collection under one name."""
_RULES = 4
"""The number of the rules by which a member is an image; an index that was kept under others is not read."""


class _Member(NamedTuple):
    """A member's name, where its bytes lie, and where the next member's header begins; names are None for no file."""

    name: str | None
    start: int
    size: int
    next: int
    link: str | None = None
    """The member whose bytes a link stands for."""
    sparse: bool = False
    """Whether its bytes lie in pieces, with holes between them."""


class TarReader:
    """The image members of one uncompressed tar file. It holds 8 bytes an image: names are read from the headers.

    `member` names the one image of a WebDataset sample that is taken, by all that follows the key: `jpg`, `mask.png`.
    """

    shape = None

    def __init__(self, path: Path, member: str = "") -> None:
        self._path, self._only = path, member.lower()
        self.identity: dict[str, Any] = {"format": "tar", **file_state(path)}
        if member:
            self.identity["member"] = self._only
        self._positions, self._linked, notes, self.left_out = self._index()
        if not len(self):
            wanted = f"named KEY.{member}" if member else f"({' '.join(sorted(IMAGE_SUFFIXES))})"
            raise NoImages(f"{str(path)!r} holds no images {wanted}")
        for line in notes:
            say(line)

    def __len__(self) -> int:
        return len(self._positions)

    def read(self, indices: Int64[np.ndarray, " n"]) -> list[object]:
        """Each member's bytes."""
        try:
            with self._path.open("rb", buffering=0) as file:
                positions = self._positions[indices].tolist()
                return [_bytes(file, self._linked.get(position, position)) for position in positions]
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
        """The number in the `.cls` member that shares an image's name up to the last dot, else its key.

        Raises: RequestError where one is missing, or there are several that differ.
        """
        classes: dict[str, int] = {}
        of_key: dict[str, set[int]] = {}
        images: list[tuple[str, str]] = []
        with self._path.open("rb", buffering=0) as file:
            for position, member in self._scan():
                name = member.name or ""
                stem, (key, end) = posixpath.splitext(name)[0], _key(name)
                if member.link is not None and end == "cls":
                    if (target := posixpath.splitext(member.link)[0]) in classes:
                        classes[stem] = classes[target]
                        of_key.setdefault(key, set()).add(classes[stem])
                elif content.suffix_of(name) == ".cls":
                    file.seek(member.start)
                    label = self._class(name, file.read(member.size))
                    if classes.setdefault(stem, label) != label:
                        raise RequestError(f"{name!r} is twice in {str(self._path)!r}, as {classes[stem]} and {label}")
                    of_key.setdefault(key, set()).add(label)
                elif len(images) < len(self) and self._positions[len(images)] == position:
                    images.append((stem, key))
        return np.array([self._label(classes, of_key, *image) for image in images], np.int64)

    def _class(self, name: str, text: bytes) -> int:
        try:
            return int(text)
        except ValueError:
            raise RequestError(f"{name!r} in {str(self._path)!r} is no class number") from None

    def _label(self, classes: Mapping[str, int], of_key: Mapping[str, set[int]], stem: str, key: str) -> int:
        """The class of an image. Keys that have dots in them, as in `22.05.png`, are told apart by the whole name."""
        if stem in classes:
            return classes[stem]
        labels = of_key.get(key, set())
        if not labels:
            raise RequestError(f"{str(self._path)!r} has no labels: there is no member {key + '.cls'!r}")
        if len(labels) > 1:
            raise RequestError(f"{str(self._path)!r} has several labels for {stem!r}; name its label {stem + '.cls'!r}")
        return next(iter(labels))

    def _index(self) -> tuple[Int64[np.ndarray, " images"], dict[int, int], list[str], dict[str, int]]:
        """Where the images' headers lie, of links also those that they stand for, notes, and what is left out.

        It is kept in the cache, for every command opens the whole pool.
        """
        kept = cache_folder() / "tars" / f"{hash_of([_RULES, os.path.abspath(self._path), self.identity])}.parquet"
        said = kept.with_suffix(".json")  # written before: where there is none, there was nothing to say
        with suppress(Damaged):  # or not there
            columns = read_columns(kept, ("position", "data"))
            others = json.loads(said.read_text("utf-8")) if said.exists() else {"notes": [], "left_out": {}}
            linked = _differing(columns["position"], columns["data"])
            return columns["position"], linked, others["notes"], others["left_out"]
        positions, data, notes, left_out = self._images()
        with suppress(OSError):  # a cache that cannot be written costs the headers again
            if notes:
                write_json(said, {"notes": notes, "left_out": left_out})
            write_columns(kept, {"position": positions, "data": data})
        return positions, _differing(positions, data), notes, left_out

    def _images(
        self,
    ) -> tuple[Int64[np.ndarray, " images"], Int64[np.ndarray, " images"], list[str], dict[str, int]]:
        """The headers of the images, those of their bytes, notes, and how many others there are of each kind."""
        positions, data, targets = array("q"), array("q"), dict[int, int]()
        left_out, kinds, several, before = Counter[str](), set[str](), 0, ("", "")
        with self._path.open("rb", buffering=0) as file:
            for position, member in self._scan():
                if member.link is not None and not targets:
                    targets = self._targets()
                name = member.name or ""
                target, suffix = targets.get(position, position), content.suffix_of(name)
                if not _is_image(file, suffix, target):
                    if suffix not in content.DATA_SUFFIXES:
                        left_out[suffix if target >= 0 else "links to nothing in it"] += 1
                    continue
                sample = _key(name)
                if sample[0] == before[0]:
                    several += 1
                    if len(kinds) <= _MOST_KINDS:
                        kinds |= {before[1], sample[1]}
                before = sample
                if self._only in ("", sample[1]):
                    positions.append(position)
                    data.append(target)
        notes = [content.note(self._path.name, left_out)] if left_out else []
        again = several >= len(kinds) > 1  # else the ends are of names with dots in them, each there once
        if again and len(kinds) <= _MOST_KINDS and not self._only:
            notes.append(
                f"note: {self._path.name} has samples of several images ({', '.join(sorted(kinds))}), and all are "
                f"taken; '{self._path.name}#{sorted(kinds, key=len)[0]}' takes one member of each sample"
            )
        return np.array(positions, np.int64), np.array(data, np.int64), notes, content.counted(left_out)

    def _targets(self) -> dict[int, int]:
        """The headers of the bytes that links stand for, by the links' own; a link out of the archive is not there."""
        links = {position: member for position, member in self._scan() if member.link is not None}
        where = {_plain(member.name): position for position, member in links.items()}
        wanted = {member.link for member in links.values()}
        where |= {
            _plain(m.name): position for position, m in self._scan() if m.link is None and _plain(m.name) in wanted
        }
        found = {}
        for position, member in links.items():
            end, steps = where.get(member.link or ""), 0
            while end in links and steps < _MOST_STEPS:
                end, steps = where.get(links[end].link or ""), steps + 1
            found[position] = -1 if end is None or end in links else end
        return found

    def _scan(self) -> Iterator[tuple[int, _Member]]:
        """Yield the header position and the member of every regular file and link, but for those that macOS adds."""
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
    if member.sparse:
        return _without_holes(file, position)
    file.seek(member.start)
    data = file.read(member.size)
    return Unreadable("the tar file ends before it") if len(data) < member.size else data


def _without_holes(file: BinaryIO, position: int) -> bytes | Unreadable:
    """What a sparse member at `position` holds."""
    file.seek(position)
    try:
        with tarfile.TarFile(fileobj=file) as tar:
            info = tar.next()
            if info is None or info.size > _MOST_SPARSE:
                return Unreadable("it is stored with holes and above 64 MB without them")
            content = tar.extractfile(info)
            return content.read() if content is not None else Unreadable("the tar file ends before it")
    except tarfile.TarError as error:
        return Unreadable(f"cannot be read from its tar file: {error}")


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
        regular, sparse = info.isreg(), info.issparse()
        link = None
        if info.islnk() or info.issym():  # a hard link's name begins at the top
            link = _plain(posixpath.join(posixpath.dirname(info.name) if info.issym() else "", info.linkname))
        called = _clean(info.name) if regular or link is not None else None
        size = info.size * (regular and not sparse)  # of a sparse one the pieces are shorter
        return _Member(called, info.offset_data, size, tar.offset, link, sparse)


def _is_apple_double(name: str) -> bool:
    """Whether a member holds what macOS keeps beside a file (`._a.jpg`), and no image."""
    return name.rpartition("/")[2].startswith("._")


def _is_image(file: BinaryIO, suffix: str, position: int) -> bool:
    """Whether the member at `position` is an image: by the suffix of its name, else by its first bytes; -1 is none."""
    if position < 0 or suffix in IMAGE_SUFFIXES or not content.may_be_image(suffix):
        return position >= 0 and suffix in IMAGE_SUFFIXES
    member = _member(file, position)
    file.seek(member.start)
    return content.is_image(suffix, file.read(min(member.size, content.FIRST)))


def _differing(positions: Int64[np.ndarray, " n"], data: Int64[np.ndarray, " n"]) -> dict[int, int]:
    links = np.flatnonzero(positions != data)
    return dict(zip(positions[links].tolist(), data[links].tolist(), strict=True))


def _plain(name: str | None) -> str:
    """A member's path as links name it."""
    return _clean(posixpath.normpath(name or ""))


def _clean(name: str) -> str:
    return name.removeprefix("./").lstrip("/")


def _key(name: str) -> tuple[str, str]:
    """WebDataset's key (everything before the base name's first dot) and what follows that dot, in lower case."""
    folder, slash, base = name.rpartition("/")
    key, _, end = base.partition(".")
    return folder + slash + key, end.lower()
