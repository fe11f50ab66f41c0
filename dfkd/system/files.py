"""Atomic writes of files and folders, the paths of the cache, and hashes."""

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
"""Age in seconds above which a temporary file counts as left over from a killed command."""


def partial_folder(final: Path) -> Path:
    """Return the temporary path of a folder, which is renamed to `final` when complete."""
    return final.with_name(final.name + PARTIAL)


def cache_folder() -> Path:
    """Return the cache folder: DFKD_CACHE, or else `dfkd` in the user's cache folder.

    The cache holds only what `dfkd` can compute again.
    Raises: RequestError if the user has no home folder.
    """
    if named := os.environ.get("DFKD_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dfkd"
    except RuntimeError:
        raise RequestError("this user has no home folder for the cache; set DFKD_CACHE to another folder") from None


def cached_folder(kind: str, request: Mapping[str, Any]) -> Path:
    """Return the path of a request's folder in the cache. The folder need not exist."""
    return cache_folder() / kind / hash_of(request)


def request_folder(kind: str, request: Mapping[str, Any]) -> Path:
    """Make a request's folder in the cache, write the request there as JSON, and return the path.

    Raises: RequestError if the cache cannot be written.
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


def local_copy(uri: str) -> Path:
    """Return the path in the cache for a folder of an object store. The folder keeps its name."""
    whole = uri.rstrip("/")
    return cache_folder() / "remote" / hash_of(whole) / whole.rpartition("/")[2]


def user_path(text: str) -> Path:
    """Return a path with `~` filled in. The `~` of an unknown user stays."""
    return Path(os.path.expanduser(text))


def can_exist(path: Path) -> bool:
    """Return whether the file system allows a path. A path that is too long makes every file operation fail."""
    try:
        path.lstat()
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    return True


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with _naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, and flush their entries, which then survive a power failure."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


@contextmanager
def replacing(path: Path, first: bool = False) -> Iterator[Path]:
    """Yield a temporary path, which is renamed to `path` if the block succeeds, and removed otherwise.

    With `first`, an existing `path` stays and the temporary file is removed. Of concurrent commands, the first one
    wins.
    """
    make_folder(path.parent)
    # A unique name: two commands may write to one cache, even from two machines with equal process numbers.
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")
    try:
        with _naming(path):
            yield partial
            sync(partial)
            _link(partial, path) if first else partial.replace(path)
        sync(path.parent)
    finally:
        with suppress(OSError):  # an error in the block is more important
            partial.unlink(missing_ok=True)


def _link(partial: Path, path: Path) -> None:
    """Rename a file unless the target exists. A file system without hard links replaces the target."""
    try:
        os.link(partial, path)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        partial.replace(path)


def remove_stale(folder: Path) -> None:
    """Remove temporary files of killed commands from a folder of dfkd. Files in use are younger than STALE_SECONDS."""
    for partial in folder.glob(f"*{PARTIAL}"):
        with suppress(OSError):
            if time.time() - partial.stat().st_mtime > STALE_SECONDS:
                partial.unlink()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the file's name to errors of writing that have none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_text(path: Path, text: str, first: bool = False) -> None:
    """Write a text file atomically. `first` is that of `replacing`."""
    with replacing(path, first) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any], first: bool = False) -> None:
    """Write indented JSON atomically, with keys in the given order. Raises: ValueError for NaN."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n", first)


def output_path(text: str, flag: str = "--out") -> Path:
    """Return the absolute path that a flag names, with links resolved.

    The path of a folder in an object store is that of its copy in the cache.
    Raises: RequestError if the path cannot be written.
    """
    if is_remote(text) and flag != "--out":
        raise RequestError(f"{flag} {text} is in an object store; name a file on this machine")
    path = local_copy(text) if is_remote(text) else Path(text).resolve()
    if not _is_utf8(str(path)):
        raise RequestError(f"{flag} {text} is not UTF-8, which Arrow requires of file names; give another name")
    above = next((folder for folder in path.parents if folder.exists()), path)  # nothing is above the root
    if not above.is_dir() or not os.access(above, os.W_OK):
        what = "may not be written to" if above.is_dir() else "is a file"
        raise RequestError(f"{flag} {text} cannot be made: {above} {what}")
    return path


def _is_utf8(text: str) -> bool:
    """Return whether a text is valid UTF-8. Python keeps the other bytes of file names as lone surrogates."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def sync_folder(folder: Path) -> None:
    """Flush all files and folders below a folder, and the folder's entries."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)


def replace_folder(partial: Path, final: Path) -> None:
    """Replace a folder by a complete new version. `current_folder` finds one of the two versions at any time."""
    old = final.with_name(final.name + ".old")
    sync_folder(partial)
    restore_folder(final)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(final: Path) -> None:
    """Clean up after an interrupted `replace_folder`, and keep one version.

    The older version is kept if the newer one was not yet renamed to `final`.
    """
    old = final.with_name(final.name + ".old")
    if old.exists() and not final.exists():
        old.rename(final)
        sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def current_folder(final: Path) -> Path | None:
    """Return the path of the last complete version of a folder that `replace_folder` writes, or None."""
    old = final.with_name(final.name + ".old")
    return final if final.exists() else old if old.exists() else None


def hash_of(value: object) -> str:
    """Return a short, stable hash of a JSON value: 16 hexadecimal digits of SHA-256."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
