"""Arguments -> configuration -> stage, and the exit status."""

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
from dfkd.system.errors import RequestError, nearest
from dfkd.system.text import visible

INTERRUPTED = 130
TOGETHER = 2.0
"""Seconds in which several signals count as one, where a launcher passes on what the terminal sends to all."""


def entry() -> None:
    """The `dfkd` command."""
    sys.exit(main())


def main(argv: Sequence[str] | None = None, stages: Mapping[str, Stage] = STAGES) -> int:
    """Run one command; the exit status is 0 done, 2 the request is wrong, 130 or 143 interrupted. A defect raises.

    A script with a command of its own gives its `stages`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "--version"):
        print(f"dfkd {__version__}" if name == "--version" else _overview())
        return 0
    prog = f"dfkd {name}" if name in stages else "dfkd"
    silent = False
    try:
        silent = ranks.quiet()  # what is wrong with the arguments is so on every rank
        if name not in stages:
            raise RequestError(f"there is no command {name!r}{nearest(name, stages)}")
        stage = stages[name]
        resolved = parse_arguments(stage, arguments[1:])
        if resolved is None:  # help was requested, and printed
            return 0
        with _surroundings(stage, silent), printing(QUIET in arguments, still=("answers",)):
            say(f"{prog}: {tables.describe(resolved)}")
            silent = False  # an error of this rank alone
            stage.run(resolved)
    except ranks.Ended:
        return 2
    except RequestError as error:
        if not silent:
            print(f"{prog}: {ranks.named()}{error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:  # no file of the user's: a defect of ours
            raise
        print(f"{prog}: {ranks.named()}{_file_trouble(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        if not ranks.quiet():
            print(f"{prog}: interrupted; {visible(str(interrupt)) or 'what was complete is kept'}", file=sys.stderr)
        return getattr(interrupt, "exit_status", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


@contextmanager
def _surroundings(stage: Stage, silent: bool) -> Iterator[None]:
    """Signals; and where torchrun has started several processes, their working together."""
    if not ranks.launched():
        with signals.handled():
            yield
        return
    if stage.alone is not None:
        ranks.refuse(f"dfkd {stage.name}", stage.alone)
    with signals.handled(TOGETHER), printing(silent), ranks.joined():
        yield


def _file_trouble(error: OSError) -> str:
    """What is wrong with a file of the user's, and where the disk is full a hint."""
    name = visible(str(error.filename or "a file"))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        said = "the disk is full" if error.errno == errno.ENOSPC else "the quota is used up"
        return f"{name}: {said}; make room and give the same command again: it continues from what is complete"
    return f"{name}: {error.strerror or error}"


def _overview() -> str:
    rows = [f"  {name:<10}{(stage.options.__doc__ or '').strip()}" for name, stage in STAGES.items()]
    return "\n".join(
        [
            "usage: dfkd COMMAND [OPTIONS]",
            "",
            "Distil a small image classifier from a trained one when its training data cannot be had.",
            "",
            *rows,
            "",
            "dfkd COMMAND --help lists the options. dfkd demo shows every stage in a few minutes.",
        ]
    )
