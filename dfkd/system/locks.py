"""Locks that let one command at a time write a folder. The kernel frees a lock when its process ends."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from dfkd.system import ranks
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.system.files import make_folder

LOCK = ".lock"
PROBED = 0.2
"""Seconds to wait before a second try: `is_held` of another process holds a lock for a moment."""


_Made = TypeVar("_Made")


class Busy(RequestError):
    """Error if another command is writing the folder."""


def once(
    done: Callable[[], bool], lock: Callable[[], AbstractContextManager[None]], make: Callable[[], _Made]
) -> _Made | None:
    """Return `make()`, called under the lock, or None if the work is `done` already.

    `done` is called again under the lock, because another command may have finished in between. With several ranks,
    rank 0 checks and locks for all, and every rank calls `make`.
    """
    if ranks.from_first(done):
        return None
    with ranks.held(lock):
        return None if ranks.from_first(done) else make()


@contextmanager
def locked(folder: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Lock a folder against other commands while the block runs. The folder is made if it does not exist.

    The lock file is removed at the end, and the folder if it is empty. Messages call the folder `what`: `--out run`.
    Raises: Busy if another command holds the lock and `wait` is false. RequestError if the folder cannot be written.
    """
    try:
        handle = _acquire(folder, what, wait)
    except OSError as error:
        raise RequestError(f"{what} cannot be written to: {error.filename}: {error.strerror}") from None
    try:
        yield
    finally:
        # Remove the file before the lock is released. A process that opened the file earlier sees this and tries again.
        with suppress(OSError):
            if _is_at(handle, folder / LOCK):  # another command may have renamed the folder, or made a new one
                (folder / LOCK).unlink()
                folder.rmdir()
        os.close(handle)


def is_held(folder: Path) -> bool:
    """Return whether another command is writing the folder now. False on a system without file locks."""
    try:
        import fcntl

        handle = os.open(folder / LOCK, os.O_RDWR)
    except (ImportError, OSError):
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # a shared lock: several processes can check at once
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def _acquire(folder: Path, what: str, wait: bool) -> int:
    """Return the handle of the locked file. The kernel frees the lock when the handle is closed or the process ends."""
    path = folder / LOCK
    while True:
        make_folder(folder)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the command that held the lock renamed or removed the folder
            continue
        try:
            _lock(handle, folder, what, wait)
            if _is_at(handle, path):  # else the last holder has removed the file
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _lock(handle: int, folder: Path, what: str, wait: bool) -> None:
    try:
        # Windows has no flock. dfkd is not tested there, and does not keep two commands apart.
        import fcntl
    except ImportError:
        return
    try:
        # NFS requires a file that is open for writing. flock works across machines on NFS since Linux 2.6.12.
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            time.sleep(PROBED)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(
            f"{what}: another command is writing this folder; wait for its end, or give another folder"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        say(f"note: {folder.parent} has no locks ({error.strerror}); see that no other command writes {what}")
