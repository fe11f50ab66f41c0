"""SIGINT and SIGTERM: the first one ends the work in good order within seconds, a second one ends the process at once.

Whatever is on disk is complete at every moment, so that ending at once loses time and nothing else.
"""

import os
import selectors
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 10.0
"""Seconds after which a process that has not reacted is ended: the work may be inside a library's long call."""


class Interrupted(KeyboardInterrupt):
    """A signal came and what was done is kept; the shell's convention makes its number part of the exit status."""

    def __init__(self, signal: int, message: str = "") -> None:
        super().__init__(message)
        self.exit_status = 128 + signal


class StopRequest:
    """Whether SIGINT or SIGTERM came while a block was to finish its step."""

    signal: int | None = None


class _Handler:
    """What happens at a signal: the innermost block of `stop_request` is told, or the work is interrupted here."""

    def __init__(self, together: float) -> None:
        self.first: int | None = None
        self.blocks: list[StopRequest] = []
        self.together, self._at = together, 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.first is not None:
            if time.monotonic() < self._at + self.together:
                return
            os._exit(128 + number)
        self.first, self._at = number, time.monotonic()
        if not self.blocks:
            raise Interrupted(number)
        self.blocks[-1].signal = number

    @property
    def finishing(self) -> bool:
        """Whether a block knows of the signal and finishes its step, however long that takes."""
        return bool(self.blocks) and self.blocks[-1].signal is not None


_current: ContextVar[_Handler | None] = ContextVar("handler", default=None)
"""Of the command that this thread runs."""


@contextmanager
def handled(together: float = 0.0) -> Iterator[_Handler | None]:
    """Handle both signals while the block runs. Within another such block, or in a thread, nothing changes.

    Signals within `together` seconds of the first count as one: of a terminal's interrupt a launcher sends another.
    """
    if _current.get() is not None or threading.current_thread() is not threading.main_thread():
        yield _current.get()
        return
    handler = _Handler(together)
    token = _current.set(handler)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    # a signal that was ignored from the start stays so: a shell starts work in the background without SIGINT
    before = {n: signal.signal(n, handler) for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN}
    wakeup = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(read_end, handler), name="dfkd-signals", daemon=True)
    watcher.start()
    try:
        yield handler
    finally:
        _current.reset(token)
        for number, previous in before.items():
            signal.signal(number, previous)
        signal.set_wakeup_fd(wakeup)
        os.write(write_end, b"\0")
        watcher.join()
        os.close(read_end)
        os.close(write_end)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Hold back SIGINT and SIGTERM while the block runs, so that it can stop between two steps.

    Only within `handled`, which the command line begins: elsewhere signals are the caller's, and Python's own
    KeyboardInterrupt ends the block where it is; what is on the disk is complete then, too.
    Raises: Interrupted at the block's end, where a signal came and the block did not say so itself.
    """
    handler, request = _current.get(), StopRequest()
    if handler is None or handler.first is not None:
        yield request
        return
    handler.blocks.append(request)
    try:
        yield request
    finally:
        handler.blocks.remove(request)
    if request.signal is not None:
        raise Interrupted(request.signal)


def _watch(read_end: int, handler: _Handler) -> None:
    """End the process at the second signal, also while Python waits for a library's call and handles nothing.

    The interpreter writes a byte to the pipe for every signal; 0 is the block's end.
    """
    first = _next(read_end, None)
    if first == 0:
        return
    until = time.monotonic() + handler.together
    second = _next(read_end, GRACE)
    while (second is None and handler.finishing) or (second and time.monotonic() < until):
        second = _next(read_end, GRACE)
    if second != 0:
        os.write(2, b"dfkd: ended at once; give the same command again to resume\n")
        os._exit(128 + (second or first or 0))


def _next(read_end: int, seconds: float | None) -> int | None:
    """The next signal's number, 0 at the end; None where none came within `seconds`."""
    with selectors.DefaultSelector() as selector:
        selector.register(read_end, selectors.EVENT_READ)
        while selector.select(seconds):
            number = os.read(read_end, 1)[0]
            if number in (0, *SIGNALS):
                return number
    return None
