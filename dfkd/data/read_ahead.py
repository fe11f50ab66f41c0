"""Reading in a thread, some pieces ahead of the caller."""

import contextvars
import threading
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import TypeVar

_AHEAD = 2
"""Pieces that are read before the caller needs them."""
_Piece = TypeVar("_Piece")
_Read = TypeVar("_Read")


def read_ahead(pieces: Iterable[_Piece], read: Callable[[_Piece], _Read]) -> Iterator[tuple[_Piece, _Read]]:
    """Yield each piece with `read(piece)`, which a thread calls.

    The thread ends with the iteration, even if the caller stops early. Exceptions of the thread are raised here.
    """
    queue: SimpleQueue[tuple[_Piece, _Read] | BaseException | None] = SimpleQueue()
    room, left = threading.Semaphore(_AHEAD), threading.Event()

    def work() -> None:
        try:
            for piece in pieces:
                room.acquire()
                if left.is_set():
                    return
                queue.put((piece, read(piece)))
            queue.put(None)
        except BaseException as error:
            queue.put(error)

    here = contextvars.copy_context()  # carries over whether this thread prints lines
    thread = threading.Thread(target=here.run, args=(work,), name="dfkd-read-ahead", daemon=True)
    thread.start()
    try:
        while (item := queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            room.release()
            yield item
    finally:
        left.set()
        room.release()
        thread.join()
