"""Files of object stores (`s3://`, `gs://`, `hf://`, `memory://`), read by byte ranges through fsspec.

RemoteFile has the methods of `pathlib.Path` that readers call. After a lost connection, a request is repeated, and
finally ends the command. A network error therefore never counts as an unreadable image.
"""

import io
import posixpath
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from dfkd.system.errors import RequestError

TRIES, PAUSE = 5, 0.5
"""Number of tries for a request, and the pause in seconds before the second try. The pause doubles with each try."""
AHEAD = 8 << 20
"""Smallest number of bytes in one request while headers are read one after another."""
_URI = re.compile(r"(?!https?:)[a-z][a-z0-9+.-]*://", re.ASCII)
_STATE = ("ETag", "etag", "md5Hash", "blob_id", "mtime", "LastModified", "last_modified", "updated", "created")
"""Keys under which file systems report a content hash or a modification time, in order of preference."""
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_Found = TypeVar("_Found")


class Size(NamedTuple):
    """Result of `RemoteFile.stat`, with the one field of `os.stat_result` that readers use."""

    st_size: int


def tried(uri: str, request: Callable[[], _Found], done: str = "read", missing: bool = False) -> _Found:
    """Return the result of a request to an object store, after up to TRIES tries.

    `done` is the action in the error message: `read` or `written`.
    Raises: RequestError, which names the file. FileNotFoundError if `missing` is true and the file does not exist.
    """
    for pause in (*(PAUSE * 2**n for n in range(TRIES - 1)), None):
        try:
            return request()
        except _LASTING as error:
            gone = isinstance(error, FileNotFoundError)
            if gone and missing and not _of_bucket(error):
                raise
            what = "does not exist, or not any more" if gone else f"cannot be {done} ({type(error).__name__}: {error})"
            if gone and (done == "written" or _of_bucket(error)):
                what = f"cannot be {done}: {error}"
            raise RequestError(f"{uri!r} {what}; correct its name, or access to it") from None
        except Exception as error:  # each file system raises errors of its own and of its network library
            if pause is None:
                raise RequestError(
                    f"{uri!r} cannot be {done} after {TRIES} tries ({type(error).__name__}: {error}); give the "
                    "same command again: it continues from what is complete"
                ) from error
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _of_bucket(error: Exception) -> bool:
    """Return whether an error says that the bucket does not exist. Only some file systems say so."""
    return "bucket does not exist" in str(error).lower()


def system_of(uri: str) -> tuple[Any, str]:
    """Return the file system of a URI, and the path there. Raises: RequestError if no file system can read the URI."""
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(uri)
    except ImportError as error:
        raise RequestError(f"{uri!r} needs another package: {error}") from None
    except ValueError as error:
        raise RequestError(
            f"{uri!r} does not name a file of an object store ({error}); write it like s3://BUCKET/x.tar"
        ) from None
    return system, path


@dataclass(frozen=True)
class RemoteFile:
    """File of an object store."""

    system: Any
    """The fsspec file system."""
    path: str
    uri: str

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """File name without its folder."""
        return posixpath.basename(self.path)

    @property
    def suffix(self) -> str:
        """Last suffix of the file name."""
        return posixpath.splitext(self.path)[1]

    @cached_property
    def _about(self) -> dict[str, Any]:
        return self._tried(lambda: self.system.info(self.path))

    def stat(self) -> Size:
        """Return the file's size in bytes at the first access."""
        return Size(int(self._about["size"]))

    def state(self) -> dict[str, int | str]:
        """Return what identifies the file's content: its size and, if known, a content hash or modification time."""
        mark = next((key for key in _STATE if self._about.get(key)), None)
        return {"size": self.stat().st_size, **({mark: str(self._about[mark])} if mark else {})}

    def open(self, mode: str = "rb", buffering: int = 0, ahead: int = AHEAD) -> io.RawIOBase:
        """Return a binary file object. Each request fetches at least `ahead` bytes."""
        return _Ranges(self, ahead)

    def read_bytes(self) -> bytes:
        """Return all bytes of the file."""
        return self.range(0, self.stat().st_size)

    def matches(self) -> list[str]:
        """Return the sorted paths that match the file's path as a glob pattern."""
        return sorted(self._tried(lambda: self.system.glob(self.path)))

    def range(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to `stop` (exclusive)."""
        return self._tried(lambda: self.system.cat_file(self.path, start=start, end=stop)) if start < stop else b""

    def _tried(self, request: Callable[[], _Found]) -> _Found:
        return tried(self.uri, request)


class _Ranges(io.RawIOBase):
    """Seekable binary file over a remote file. One block of the file is in memory."""

    def __init__(self, file: RemoteFile, ahead: int) -> None:
        self._file, self._ahead, self._size = file, ahead, file.stat().st_size
        self._at, self._start, self._block = 0, 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size < 0 else min(self._at + size, self._size)
        if self._at >= stop:
            return b""
        if not self._start <= self._at <= stop <= self._start + len(self._block):
            self._block = self._file.range(self._at, min(max(stop, self._at + self._ahead), self._size))
            self._start = self._at
        found = self._block[self._at - self._start : stop - self._start]
        self._at += len(found)
        return found

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)


def is_remote(text: str) -> bool:
    """Return whether a DATA is the URI of an object store or of another file system of fsspec."""
    return _URI.match(text) is not None


def find(text: str, expanded: Sequence[str]) -> list[RemoteFile]:
    """Return the files that URIs name, with glob patterns expanded.

    Raises: RequestError if a pattern matches no file or no file system can read a URI.
    """
    protocol = text.partition("://")[0]
    found = []
    for uri in expanded:
        system, path = system_of(uri)
        whole = RemoteFile(system, path, uri)
        paths = whole.matches() if "*" in uri else [path]
        if not paths:
            raise RequestError(f"no file matches {uri!r}")
        tail = path.lstrip("/")  # the path lacks the host, and of some file systems the first slash
        head = uri.removesuffix(tail) if uri.endswith(tail) else None
        found += [
            RemoteFile(system, path, f"{protocol}://{path}" if head is None else head + path.lstrip("/"))
            for path in paths
        ]
    return found
