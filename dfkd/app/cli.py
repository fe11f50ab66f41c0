"""The `dfkd` command: parse the arguments, run the stage, and return the exit status."""

import errno
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from dfkd import __version__
from dfkd.app.arguments import QUIET, parse_arguments
from dfkd.config import tables
from dfkd.config.stage_table import STAGES, Stage
from dfkd.system import ranks, signals
from dfkd.system.console import printing, say
from dfkd.system.errors import RequestError, nearest, reason
from dfkd.system.text import visible

INTERRUPTED = 130
UNREAD = 141
"""Status when the output is no longer read, as a shell shows the signal SIGPIPE."""
TOGETHER = 2.0
"""Seconds within which several signals count as one. A launcher repeats the signal that the terminal sends to all."""


def entry() -> None:
    """Run the `dfkd` command and exit."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has ended, as with `| head`
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):  # Python flushes both once more when it exits
            os.dup2(nowhere, stream.fileno())
        status = UNREAD
    sys.exit(status)


def main(argv: Sequence[str] | None = None, stages: Mapping[str, Stage] = STAGES) -> int:
    """Run one command and return its exit status: 0 done, 2 wrong request, 130 or 143 interrupted.

    A defect of dfkd raises its exception. A script with commands of its own passes `stages`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "--version"):
        print(f"dfkd {__version__}" if name == "--version" else _overview())
        return 0
    prog = f"dfkd {name}" if name in stages else "dfkd"
    silent = False
    try:
        silent = ranks.quiet()  # arguments are wrong on every rank: one reports it
        if name not in stages:
            raise RequestError(f"there is no command {name!r}{nearest(name, stages)}")
        stage = stages[name]
        resolved = parse_arguments(stage, arguments[1:])
        if resolved is None:  # the help was printed
            return 0
        with _surroundings(stage, silent), printing(QUIET in arguments, still=("answers",)):
            say(f"{prog}: {tables.describe(resolved)}")
            silent = False  # from here on, an error may concern this rank alone
            stage.run(resolved)
    except ranks.Ended:
        return 2
    except RequestError as error:
        if not silent:
            print(f"{prog}: {ranks.named()}{error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:  # no file: a defect of dfkd
            raise
        print(f"{prog}: {ranks.named()}{_file_trouble(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        if not ranks.quiet():
            print(f"{prog}: interrupted; {visible(str(interrupt)) or 'what was complete is kept'}", file=sys.stderr)
        return getattr(interrupt, "exit_status", INTERRUPTED)
    return 0


@contextmanager
def _surroundings(stage: Stage, silent: bool) -> Iterator[None]:
    """Handle signals. With several processes of torchrun, also join the process group."""
    if not ranks.launched():
        with signals.handled():
            yield
        return
    if stage.alone is not None:
        ranks.refuse(f"dfkd {stage.name}", stage.alone)
    with signals.handled(TOGETHER), printing(silent), ranks.joined():
        yield


def _file_trouble(error: OSError) -> str:
    """Return a message for an error with a user's file, with a hint if the disk is full."""
    name = visible(str(error.filename or "a file"))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        said = "the disk is full" if error.errno == errno.ENOSPC else "the quota is used up"
        return f"{name}: {said}; make room and give the same command again: it continues from what is complete"
    return f"{name}: {reason(error)}"


def _overview() -> str:
    rows = [f"  {name:<10}{(stage.options.__doc__ or '').strip()}" for name, stage in STAGES.items()]
    return "\n".join(
        [
            "usage: dfkd COMMAND [OPTIONS]",
            "",
            "Distil a small image classifier from a trained one whose training data is not available.",
            "",
            *rows,
            "",
            "dfkd COMMAND --help lists the options.",
        ]
    )
