"""Terminal output of a stage: log lines, and progress bars with rate and remaining time."""

import functools
import importlib
import math
import shutil
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

from dfkd.system.text import visible

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress as Bar

Kind = Literal["lines", "warnings", "answers", "bars"]
_KINDS: tuple[Kind, ...] = ("lines", "warnings", "answers", "bars")
WARNING = "warning: "
"""Beginning of the lines that are warnings."""

_console: "Console | None" = None
_shown: ContextVar[frozenset[Kind]] = ContextVar("shown", default=frozenset(_KINDS))
_wording: ContextVar[Callable[[str], str]] = ContextVar("wording", default=str)


@contextmanager
def printing(quiet: bool, wording: Callable[[str], str] = str, still: Sequence[Kind] = ()) -> Iterator[None]:
    """Set what this thread prints within the block.

    With `quiet`, only the kinds in `still` are printed, else all kinds. `wording` rewrites each line.
    """
    tokens = _shown.set(_shown.get() & frozenset(still if quiet else _KINDS)), _wording.set(wording)
    try:
        yield
    finally:
        _shown.reset(tokens[0])
        _wording.reset(tokens[1])


def console() -> "Console":
    """Return the process's rich console on stderr. stdout stays free for results that a script reads."""
    global _console
    if _console is None or _console.file is not sys.stderr:  # a test may have replaced stderr
        from rich.console import Console

        # plain text in a notebook: bars of rich need ipywidgets there, and ipykernel sets FORCE_COLOR
        terminal = False if _in_notebook() else None
        _console = Console(
            file=sys.stderr, highlight=False, soft_wrap=True, force_jupyter=False, force_terminal=terminal
        )
    return _console


_unfinished = ""
"""What stands on the last line of a notebook's output, which the next text replaces."""


def _in_notebook() -> bool:
    """Whether stderr is the output of a cell, where a line can be written anew and nothing else."""
    return type(sys.stderr).__module__.startswith("ipykernel")


def ready_notebook() -> None:
    """Import the bars of tqdm, as `datasets` does, without the warning that ipywidgets are not installed."""
    if _in_notebook() and "tqdm.auto" not in sys.modules:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("tqdm.auto")


def _rewrite(line: str) -> None:
    """Replace the unfinished line of a notebook."""
    global _unfinished
    if line or _unfinished:
        sys.stderr.write("\r" + line.ljust(len(_unfinished)) + ("" if line else "\r"))
        sys.stderr.flush()
    _unfinished = line


def say(line: str) -> None:
    """Print one line of the log. Brackets are literal, and control characters (of file names) are escaped."""
    if ("warnings" if line.startswith(WARNING) else "lines") in _shown.get():
        _rewrite("")
        console().print(visible(_wording.get()(line)), markup=False)


def answer(text: str) -> None:
    """Print a result on stdout, for the reader and for a script."""
    if "answers" in _shown.get():
        print(_wording.get()(text))


def answer_width() -> int | None:
    """Return the number of columns of the terminal that shows the results, or None if stdout is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


class Progress:
    """Progress bar of `total` units.

    On a terminal, the latest values of a training are shown below the bar, with a curve of one of them. In a notebook
    the bar is a line that is rewritten.
    """

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        alone = "lines" not in _shown.get()  # in a stage that prints no lines, the bar disappears at its end
        self._bar = _panel()(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console(),
            transient=alone,
            disable="bars" not in _shown.get() or (alone and not console().is_terminal),
        )
        self._unit, self._done0 = unit, done
        self._written = 0.0 if _in_notebook() and not self._bar.disable else math.inf
        self._task = self._bar.add_task(what, total=total, completed=done, rate="", note="", values={}, curve=[])

    def advance(self, units: int, note: str = "", values: Mapping[str, float] | None = None, curve: str = "") -> None:
        """Count `units` more as done, and replace the text `note` after the bar.

        `values` replace those below the bar, and on a terminal the note, which has the most important of them. `curve`
        names the value that is drawn as a curve.
        """
        task = self._bar.tasks[0]
        done, seconds = task.completed + units, task.elapsed or 0.0
        rate = f"{(done - self._done0) / seconds:,.0f} {self._unit}/s" if seconds > 0 else ""
        fields: dict[str, Any] = {} if values is None else {"values": dict(values)}
        if values is not None and console().is_terminal:
            note = ""  # it repeats some of the values
        if values is not None and curve in values:
            fields["curve"] = [*task.fields["curve"], (curve, values[curve])][-CURVE:]
        self._bar.update(self._task, completed=done, rate=rate, note=note, **fields)
        if time.monotonic() - self._written >= NOTEBOOK_SECONDS:
            self._written = time.monotonic()
            with console().capture() as drawn:
                console().print(self._bar.get_renderable())
            _rewrite(drawn.get().rstrip())

    def close(self) -> None:
        """Leave the notebook's line to the last state, which the bar itself prints."""
        _rewrite("")


NOTEBOOK_SECONDS = 0.5
"""Between two states of a bar in a notebook."""

CURVE = 60
"""Number of latest values that a curve shows."""


def sparkline(values: Sequence[float]) -> str:
    """Return values as block characters between their minimum and maximum; values that are not finite become gaps."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return " " * len(values)
    low, high = min(finite), max(finite)
    steps = [(value - low) / (high - low) if high > low else 0.5 for value in finite]
    blocks = iter("▁▂▃▄▅▆▇█"[min(int(step * 8), 7)] for step in steps)
    return "".join(next(blocks) if math.isfinite(value) else " " for value in values)


@functools.cache
def _panel() -> "type[Bar]":
    """Return the class of progress bars. rich is imported only when a bar is shown."""
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Panel(Bar):
        """Progress bar that shows its task's values and curve below, on a terminal."""

        def get_renderables(self) -> "Iterator[RenderableType]":
            yield from super().get_renderables()
            for task in self.tasks:  # no tasks, and no console, exist while the constructor of Progress runs
                if not self.console.is_terminal:
                    return
                values, curve = task.fields["values"], task.fields["curve"]
                if values:
                    words = "   ".join(f"{name}\u00a0{_short(value)}" for name, value in values.items())
                    for line in textwrap.wrap(words, self.console.width - 2, break_on_hyphens=False):
                        yield Text(f"  {line}".replace("\u00a0", " "), overflow="ellipsis", no_wrap=True, style="dim")
                if len(curve) > 1:
                    drawn = sparkline([value for _, value in curve])
                    yield Text(f"  {curve[-1][0]} {drawn}", overflow="ellipsis", no_wrap=True, style="dim")

    return Panel


def _short(value: float) -> str:
    """Return a value in a few characters."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@contextmanager
def progress(what: str, total: int, unit: str, done: int = 0) -> Iterator[Progress]:
    """Show a progress bar while the block runs. If stderr is not a terminal, print only its last state."""
    shown = Progress(what, total, unit, done)
    with shown._bar:
        try:
            yield shown
        finally:
            shown.close()
