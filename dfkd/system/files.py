"""Files that are either complete or not there: written to a temporary name, flushed, renamed. And hashes."""

import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dfkd.system.errors import RequestError
from dfkd.system.remote import is_remote

PARTIAL = ".partial"
STALE_SECONDS = 24 * 3600
"""A temporary file that has not been written to for so long was left by a command that was killed."""


def partial_folder(final: Path) -> Path:
    """Where a folder is written that is renamed to `final` when it is complete."""
    return final.with_name(final.name + PARTIAL)


def cache_folder() -> Path:
    """Where `dfkd` keeps what it can make again: DFKD_CACHE, else `dfkd` in the user's cache folder.

    Raises: RequestError for a user without a home.
    """
    if named := os.environ.get("DFKD_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dfkd"
    except RuntimeError:
        raise RequestError("this user has no home folder for the cache; set DFKD_CACHE to another folder") from None


def cached_folder(kind: str, request: Mapping[str, Any]) -> Path:
    """Where the cache keeps what is decided by `request`, whether it is there or not."""
    return cache_folder() / kind / hash_of(request)


def request_folder(kind: str, request: Mapping[str, Any]) -> Path:
    """`cached_folder`, made, with the request as JSON in it.

    Raises: RequestError where the cache cannot be written.
    """
    folder = cached_folder(kind, request)
    try:
        if not (folder / "request.json").exists():
            write_json(folder / "request.json", request)
        remove_stale(folder)
    except OSError as error:
        raise RequestError(
            f"the cache {folder} cannot be written: {error.strerror}; set DFKD_CACHE to another folder"
        ) from None
    return folder


def result_folder(kind: str, content: Mapping[str, Any]) -> str:
    """Where the cache keeps the result of a request that names no folder: what decides the result names it."""
    return str(cached_folder(kind, content))


def local_copy(uri: str) -> Path:
    """Where the cache has a folder of an object store, under the same name."""
    whole = uri.rstrip("/")
    return cache_folder() / "remote" / hash_of(whole) / whole.rpartition("/")[2]


def user_path(text: str) -> Path:
    """A path with `~` filled in; the `~` of a user whom nobody knows stays."""
    return Path(os.path.expanduser(text))


def can_exist(path: Path) -> bool:
    """Whether a file system takes such a name: where it is too long, asking for the file raises an error."""
    try:
        path.lstat()
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    return True


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with _naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that their entries survive a power cut too."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


@contextmanager
def replacing(path: Path, first: bool = False) -> Iterator[Path]:
    """Yield a temporary name to write to; when the block ends well it becomes `path`, else it is removed.

    `first`: it is removed too where there is a `path` by then; of several commands at once, the first one's holds.
    """
    make_folder(path.parent)
    # a name of its own: two commands may fill one cache at once, from two machines even, with the same process number
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")
    try:
        with _naming(path):
            yield partial
            sync(partial)
            _link(partial, path) if first else partial.replace(path)
        sync(path.parent)
    finally:
        with suppress(OSError):  # what went wrong before matters more
            partial.unlink(missing_ok=True)


def _link(partial: Path, path: Path) -> None:
    """Give a file its final name unless that is taken; on a file system without hard links, also then."""
    try:
        os.link(partial, path)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        partial.replace(path)


def remove_stale(folder: Path) -> None:
    """Remove the temporary files in a folder of ours that killed commands have left; those in use are younger."""
    for partial in folder.glob(f"*{PARTIAL}"):
        with suppress(OSError):
            if time.time() - partial.stat().st_mtime > STALE_SECONDS:
                partial.unlink()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name on errors of writing, which have none: a full disk, a broken one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_text(path: Path, text: str, first: bool = False) -> None:
    """Write a whole text file, or leave what was there; `first` as with `replacing`."""
    with replacing(path, first) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any], first: bool = False) -> None:
    """Write readable JSON with stable order, or leave what was there. NaN is refused: it is not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n", first)


def output_path(text: str, flag: str = "--out") -> Path:
    """The path that a flag names, with links resolved; of an object store the copy in the cache.

    Raises: RequestError where nothing can be written there.
    """
    if is_remote(text) and flag != "--out":
        raise RequestError(f"{flag} {text} is in an object store; name a file on this machine")
    path = local_copy(text) if is_remote(text) else Path(text).resolve()
    if not _is_utf8(str(path)):
        raise RequestError(f"{flag} {text} is not UTF-8, which Arrow requires of file names; give another name")
    above = next(folder for folder in path.parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        what = "may not be written to" if above.is_dir() else "is a file"
        raise RequestError(f"{flag} {text} cannot be made: {above} {what}")
    return path


def _is_utf8(text: str) -> bool:
    """False for a file's name of other bytes, which Python keeps as halves of surrogates."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def sync_folder(folder: Path) -> None:
    """Flush everything in a folder, and its entries."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)


def replace_folder(partial: Path, final: Path) -> None:
    """Replace an older folder by a complete one; `current_folder` finds one of the two at every moment."""
    old = final.with_name(final.name + ".old")
    sync_folder(partial)
    restore_folder(final)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(final: Path) -> None:
    """Leave one version after a `replace_folder` that was cut off: the older, between its renames, else the newer."""
    old = final.with_name(final.name + ".old")
    if old.exists() and not final.exists():
        old.rename(final)
        sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def current_folder(final: Path) -> Path | None:
    """The last complete version of a folder written with `replace_folder`, or None."""
    old = final.with_name(final.name + ".old")
    return final if final.exists() else old if old.exists() else None


def hash_of(value: object) -> str:
    """A short stable hash of a JSON value: 16 hexadecimal digits of SHA-256."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_file(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
