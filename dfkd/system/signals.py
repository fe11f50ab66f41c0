"""Handling of SIGINT and SIGTERM: the first signal stops the work in seconds, a second one ends the process at once.

Every file on disk is complete at any time. Ending at once therefore loses time and nothing else.
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
"""Seconds until a process that does not react is ended. The work may be inside a library's long call."""


class Interrupted(KeyboardInterrupt):
    """Exception for a signal, raised after the work is saved.

    By the shell's convention, the exit status is 128 plus the signal's number.
    """

    def __init__(self, signal: int, message: str = "") -> None:
        super().__init__(message)
        self.exit_status = 128 + signal


class StopRequest:
    """Record of a signal that arrived while a block finishes its step; `signal` is the signal's number or None."""

    signal: int | None = None


class _Handler:
    """Signal handler of a command: it informs the innermost `stop_request` block, or interrupts the work.

    `together` is the number of seconds within which further signals are ignored.
    """

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
        """Whether a block knows of the signal and is finishing its step. There is no limit on that time."""
        return bool(self.blocks) and self.blocks[-1].signal is not None


_current: ContextVar[_Handler | None] = ContextVar("handler", default=None)
"""Handler of the command that runs in this thread."""


@contextmanager
def handled(together: float = 0.0) -> Iterator[_Handler | None]:
    """Handle both signals while the block runs. A nested block, or one in another thread, changes nothing.

    Signals within `together` seconds of the first count as one. A launcher forwards a terminal's interrupt a second
    time.
    """
    if _current.get() is not None or threading.current_thread() is not threading.main_thread():
        yield _current.get()
        return
    handler = _Handler(together)
    token = _current.set(handler)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    # a signal that was ignored from the start stays ignored: a shell starts background jobs without SIGINT
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
    """Hold back SIGINT and SIGTERM while the block runs, so that the work can stop between two steps.

    The function has an effect only within `handled`, which the command line enters. Elsewhere signals belong to the
    caller, and Python's KeyboardInterrupt interrupts the block. Files on disk are complete then, too.
    Raises: Interrupted at the end of the block if a signal arrived and the block raised nothing itself.
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
    """End the process at the second signal, even while Python waits for a library's call and runs no handler.

    The interpreter writes a byte to the pipe for every signal. A byte of 0 marks the end of the block.
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
    """Return the next signal's number, 0 at the end of the block, or None if none arrives within `seconds`."""
    with selectors.DefaultSelector() as selector:
        selector.register(read_end, selectors.EVENT_READ)
        while selector.select(seconds):
            number = os.read(read_end, 1)[0]
            if number in (0, *SIGNALS):
                return number
    return None
