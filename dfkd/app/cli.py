"""Arguments -> configuration -> stage, and the exit status."""

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from dfkd import __version__, config
from dfkd.app.arguments import parse_arguments
from dfkd.config import tables
from dfkd.system import portable, signals
from dfkd.system.console import say
from dfkd.system.errors import RequestError, nearest
from dfkd.system.foreign import COMMAND, Foreign
from dfkd.system.text import visible

INTERRUPTED = 130
_TEACHER = "dfkd {} --teacher my_nets.make_net@teacher.pt"


@dataclass(frozen=True)
class Stage:
    """A command: its configuration, the function that does it (imported only to run it), an example for its help."""

    config: type
    target: str
    example: str = ""


STAGES = {
    "select": Stage(
        config.SelectConfig,
        "dfkd.select.stage:run",
        f"{_TEACHER.format('select')} --pool photos/ --out selection",
    ),
    "generate": Stage(
        config.GenerateConfig,
        "dfkd.generators.stage:run",
        f"{_TEACHER.format('generate')} --method deepinversion --out made",
    ),
    "distill": Stage(
        config.DistillConfig,
        "dfkd.distill.stage:run",
        f"{_TEACHER.format('distill')} --student resnet18_small --samples selection --out run",
    ),
    "evaluate": Stage(
        config.EvaluateConfig, "dfkd.training.evaluate:run", "dfkd evaluate --model run --data labeled-photos/"
    ),
    "inspect": Stage(config.InspectConfig, "dfkd.report.inspection:run", "dfkd inspect selection --out selection.html"),
    "compare": Stage(config.CompareConfig, "dfkd.report.compare:run", "dfkd compare run other-run --out report.html"),
    "export": Stage(config.ExportConfig, "dfkd.models.export:run", "dfkd export --model run --out student.onnx"),
    "run": Stage(config.RunConfig, "dfkd.app.pipeline:run", "dfkd run pipelines/quick.toml"),
    "demo": Stage(config.DemoConfig, "dfkd.app.demo:run", "dfkd demo --out demo"),
}


def entry() -> None:
    """The `dfkd` command."""
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0 done, 2 the request is wrong, 130 or 143 interrupted. A defect raises."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "--version"):
        print(f"dfkd {__version__}" if name == "--version" else _overview())
        return 0
    prog = f"dfkd {name}" if name in STAGES else "dfkd"
    portable.forget()  # an earlier command of this process has filled in names of its own
    try:
        if name not in STAGES:
            raise RequestError(f"there is no command {name!r}{nearest(name, STAGES)}")
        stage = STAGES[name]
        resolved = parse_arguments(name, stage.config, arguments[1:], stage.example)
        if resolved is None:  # help was requested, and printed
            return 0
        say(f"{prog}: {tables.describe(resolved)}")
        module, _, function = stage.target.partition(":")
        with signals.handled(), Foreign(COMMAND):
            getattr(importlib.import_module(module), function)(resolved)
    except RequestError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:  # no file of the user's: a defect of ours
            raise
        print(f"{prog}: {_file_trouble(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"{prog}: interrupted; {visible(str(interrupt)) or 'what was complete is kept'}", file=sys.stderr)
        return getattr(interrupt, "exit_status", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _file_trouble(error: OSError) -> str:
    """What is wrong with a file of the user's, and where the disk is full a hint."""
    name = visible(str(error.filename or "a file"))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        said = "the disk is full" if error.errno == errno.ENOSPC else "the quota is used up"
        return f"{name}: {said}; make room and give the same command again: it goes on from what is complete"
    return f"{name}: {error.strerror or error}"


def _overview() -> str:
    rows = [f"  {name:<10}{(stage.config.__doc__ or '').strip()}" for name, stage in STAGES.items()]
    return "\n".join(
        [
            "usage: dfkd COMMAND [OPTIONS]",
            "",
            "Distil a small image classifier from a trained one when its training data cannot be had.",
            "",
            *rows,
            "",
            "dfkd COMMAND --help lists the options; dfkd demo shows the whole thing in a few minutes.",
        ]
    )
