"""Members of a tar file by the position of their headers: name, position of the data, and the data."""

import io
import posixpath
import tarfile
from typing import NamedTuple

from dfkd.data.readers.reader import Unreadable

_BLOCK = tarfile.BLOCKSIZE
_MOST_SPARSE = 1 << 26
"""Largest size in bytes of an image stored as a sparse file. Holes need no space in an archive, but fill the memory."""


class Member(NamedTuple):
    """Name of a member, start and size of its data in bytes, and the position of the next member's header.

    The name is None for members that are not files.
    """

    name: str | None
    start: int
    size: int
    next: int
    link: str | None = None
    """Path of the member that a link stands for."""
    sparse: bool = False
    """Whether the data is stored in pieces with holes between them."""


def bytes_of(file: io.RawIOBase, position: int) -> bytes | Unreadable:
    """Return the data of the member at `position`."""
    try:
        member = member_at(file, position, check=True)
    except tarfile.TarError as error:
        return Unreadable(f"cannot be read from its tar file: {error}")
    if member.sparse:
        return _without_holes(file, position)
    file.seek(member.start)
    data = file.read(member.size)
    return Unreadable("the tar file ends before it") if len(data) < member.size else data


def _without_holes(file: io.RawIOBase, position: int) -> bytes | Unreadable:
    """Return the data of the sparse member at `position`."""
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


def member_at(file: io.RawIOBase, position: int, check: bool = False) -> Member:
    """Return the member whose header is at `position`. At the end of the archive, `next` equals `position`.

    A plain ustar header is parsed here, faster than by `tarfile`. `tarfile` parses the other headers (long names,
    pax). `check` verifies the header's checksum.
    Raises: tarfile.TarError if the header is damaged.
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
        return Member(_clean(full.decode("utf-8", "surrogateescape")), start, size, start + -(-size // _BLOCK) * _BLOCK)
    if not header.strip(b"\0") and position > 0:  # two blocks of zeros, or nothing, mark the end
        return Member(None, position, 0, position)
    tarfile.TarInfo.frombuf(header, tarfile.ENCODING, "surrogateescape")  # TarFile takes a damaged one for the end
    file.seek(position)
    with tarfile.TarFile(fileobj=file) as tar:
        info = tar.next()
        if info is None:
            return Member(None, position, 0, position)
        regular, sparse = info.isreg(), info.issparse()
        link = None
        if info.islnk() or info.issym():  # the target of a hard link is relative to the archive's top folder
            link = plain(posixpath.join(posixpath.dirname(info.name) if info.issym() else "", info.linkname))
        called = _clean(info.name) if regular or link is not None else None
        size = info.size * (regular and not sparse)  # the pieces of a sparse file are shorter than its size
        return Member(called, info.offset_data, size, tar.offset, link, sparse)


def is_apple_double(name: str) -> bool:
    """Return whether a member is a macOS companion file (`._a.jpg`), which is not an image."""
    return name.rpartition("/")[2].startswith("._")


def plain(name: str | None) -> str:
    """Return a member's path in the form in which links name it."""
    return _clean(posixpath.normpath(name or ""))


def _clean(name: str) -> str:
    return name.removeprefix("./").lstrip("/")


def key_of(name: str) -> tuple[str, str]:
    """Return WebDataset's key (the path up to the base name's first dot) and the text after that dot, in lower case."""
    folder, slash, base = name.rpartition("/")
    key, _, end = base.partition(".")
    return folder + slash + key, end.lower()
