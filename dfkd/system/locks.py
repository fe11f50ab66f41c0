"""One command at a time writes a folder: a lock that dies with the process that holds it."""

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
"""Seconds after which a lock that was only looked at is free again."""


_Made = TypeVar("_Made")


class Busy(RequestError):
    """Another command is writing the folder."""


def once(
    done: Callable[[], bool], lock: Callable[[], AbstractContextManager[None]], make: Callable[[], _Made]
) -> _Made | None:
    """What `make` gives under the lock; None where it is `done` already, by this command or another one.

    `done` is called again under the lock: another command may have finished in between. Of several ranks the first
    one asks and locks for all; `make` is called on each.
    """
    if ranks.from_first(done):
        return None
    with ranks.held(lock):
        return None if ranks.from_first(done) else make()


@contextmanager
def locked(folder: Path, shown: str, wait: bool = False) -> Iterator[None]:
    """Make `folder` if need be and keep other commands out of it; `shown` is what messages call it.

    The lock file is removed at the end, and the folder too if nothing was put into it.
    Raises: Busy where another command holds the lock, unless it is to `wait` for it; RequestError where nothing
    can be written.
    """
    try:
        handle = _acquire(folder, shown, wait)
    except OSError as error:
        raise RequestError(f"--out {shown} cannot be written to: {error.filename}: {error.strerror}") from None
    try:
        yield
    finally:
        # while it is held: whoever opened the file before it was removed sees that and tries again
        with suppress(OSError):
            if _is_at(handle, folder / LOCK):  # the folder may have been renamed, and another command made it anew
                (folder / LOCK).unlink()
                folder.rmdir()
        os.close(handle)


def is_held(folder: Path) -> bool:
    """Whether another command is writing the folder at this moment; False where there are no locks."""
    try:
        import fcntl

        handle = os.open(folder / LOCK, os.O_RDWR)
    except (ImportError, OSError):
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who look do not see each other
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def _acquire(folder: Path, shown: str, wait: bool) -> int:
    """The open lock file: the kernel frees the lock when the file is closed, however the process ends."""
    path = folder / LOCK
    while True:
        make_folder(folder)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the folder was renamed or removed by the command that held it
            continue
        try:
            _lock(handle, folder, shown, wait)
            if _is_at(handle, path):  # and not the file that the last holder has removed
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


def _lock(handle: int, folder: Path, shown: str, wait: bool) -> None:
    try:
        # Windows has no flock: nothing of this project is tested there, and two commands are not kept apart
        import fcntl
    except ImportError:
        return
    try:
        # opened for writing, which NFS requires; flock on NFS holds among machines from Linux 2.6.12 on
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            time.sleep(PROBED)  # it may be one that has only looked: `is_held`
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(
            f"--out {shown}: another command is writing this folder; wait for its end, or give another folder"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        say(f"note: {folder.parent} has no locks ({error.strerror}); see that no other command writes {shown}")
