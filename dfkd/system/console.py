"""What the user sees while a stage works: one plain line a fact, and a progress bar with rate and time left."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from dfkd.system.text import visible

if TYPE_CHECKING:
    from rich.console import Console

_console: "Console | None" = None
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)
_wording: ContextVar[Callable[[str], str]] = ContextVar("wording", default=str)


@contextmanager
def printing(quiet: bool, wording: Callable[[str], str] = str) -> Iterator[None]:
    """While the block runs, print nothing (no line, no progress bar), or every line as `wording` puts it.

    What another thread prints stays as it is.
    """
    tokens = _quiet.set(quiet), _wording.set(wording)
    try:
        yield
    finally:
        _quiet.reset(tokens[0])
        _wording.reset(tokens[1])


def console() -> "Console":
    """The process's console, on stderr, so that stdout stays free for results that a script reads."""
    global _console
    if _console is None or _console.file is not sys.stderr:  # a test may have replaced stderr
        from rich.console import Console

        _console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    return _console


def say(line: str) -> None:
    """Print one line of the log; brackets are literal, and what would move the cursor is written out (file names)."""
    if not _quiet.get():
        console().print(visible(_wording.get()(line)), markup=False)


def answer(text: str) -> None:
    """Print a result on stdout, for the reader and for a script."""
    if not _quiet.get():
        print(_wording.get()(text))


class Progress:
    """A progress bar of `total` units; `advance` also replaces the text behind the bar."""

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console(),
            disable=_quiet.get(),
        )
        self._unit, self._done0 = unit, done
        self._task = self._bar.add_task(what, total=total, completed=done, rate="", note="")

    def advance(self, units: int, note: str = "") -> None:
        """Count `units` more as done."""
        task = self._bar.tasks[0]
        done, seconds = task.completed + units, task.elapsed or 0.0
        rate = f"{(done - self._done0) / seconds:,.0f} {self._unit}/s" if seconds > 0 else ""
        self._bar.update(self._task, completed=done, rate=rate, note=note)


@contextmanager
def progress(what: str, total: int, unit: str, done: int = 0) -> Iterator[Progress]:
    """Show a bar while the block runs; where stderr is no terminal only its last state is printed."""
    shown = Progress(what, total, unit, done)
    with shown._bar:
        yield shown
