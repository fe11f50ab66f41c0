"""Arguments -> configuration -> stage. The only file that knows the argument parser."""

import contextlib
import dataclasses
import errno
import importlib
import io
import itertools
import os
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfkd import __version__, config, portable, signals, tables
from dfkd.console import say
from dfkd.errors import RequestError, nearest
from dfkd.text import visible

INTERRUPTED = 130
_RULE = re.compile("[╭╰─]|-{8,}$")


@dataclass(frozen=True)
class Stage:
    """A command: its configuration, the function that does it (imported only to run it) and its positional field."""

    config: type
    target: str
    positional: str | None = None


STAGES = {
    "select": Stage(config.SelectConfig, "dfkd.select.stage:run"),
    "generate": Stage(config.GenerateConfig, "dfkd.generators.stage:run"),
    "distill": Stage(config.DistillConfig, "dfkd.distill.stage:run"),
    "evaluate": Stage(config.EvaluateConfig, "dfkd.evaluate:run"),
    "inspect": Stage(config.InspectConfig, "dfkd.inspection:run", "folder"),
    "compare": Stage(config.CompareConfig, "dfkd.compare.stage:run", "runs"),
    "export": Stage(config.ExportConfig, "dfkd.export:run"),
    "run": Stage(config.RunConfig, "dfkd.pipeline:run", "file"),
    "demo": Stage(config.DemoConfig, "dfkd.demo:run"),
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
        resolved = parse_arguments(name, stage, arguments[1:])
        if resolved is None:  # help was asked for, and printed
            return 0
        say(f"{prog}: {tables.describe(resolved)}")
        module, _, function = stage.target.partition(":")
        with signals.handled():
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
    """What is wrong with a file of the user's, and where the disk is full the mend."""
    name = visible(str(error.filename or "a file"))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        said = "the disk is full" if error.errno == errno.ENOSPC else "the quota is used up"
        return f"{name}: {said}; make room and give the same command again: it goes on from what is complete"
    return f"{name}: {error.strerror or error}"


def parse_arguments(name: str, stage: Stage, arguments: Sequence[str]) -> Any:
    """The configuration of a stage from its command line, over its preset's values; None when help was printed.

    Raises: RequestError for whatever the parser refuses, in one line.
    """
    import tyro

    preset = _preset_name(arguments) if "preset" in tables.field_hints(stage.config) else None
    values = tables.load_preset(preset, name, stage.config) if preset else {}
    if preset and not values and not preset.endswith(".toml"):  # a file of one's own may be for other commands
        say(f"note: --preset {preset} changes nothing here: it has nothing for {name}")
    named = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]  # the others are values
    given = {flag.removeprefix("--").replace("-", "_"): True for flag in named}
    kept = tables.layered(values, given)
    shape = _shape(stage, {key: value for key, value in values.items() if key in kept})
    flags = ["--help", *(flag for f in dataclasses.fields(shape) for flag in _flags(f.name))]
    for argument in arguments:  # first: a missing option would hide that one is misspelled
        flag = argument.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in flags:
            raise RequestError(f"there is no option {flag!r}{nearest(flag, flags)}")
    _check_lists(stage.config, arguments)
    refused = io.StringIO()
    resolved: Any
    try:
        with contextlib.redirect_stderr(refused):
            resolved, unknown = tyro.cli(
                shape,
                args=list(arguments),
                prog=f"dfkd {name}",
                description=stage.config.__doc__,
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            return None
        needed = [_flags(f.name)[0] for f in dataclasses.fields(shape) if f.default is dataclasses.MISSING]
        said = _one_line(refused.getvalue(), needed, stage.positional)
        raise RequestError(f"{said} (dfkd {name} --help lists the options)") from None
    if unknown:
        raise RequestError(f"{unknown[0]!r} belongs to no option (dfkd {name} --help lists the options)")
    for field in dataclasses.fields(stage.config):
        if field.default is dataclasses.MISSING and getattr(resolved, field.name) == ():
            flag = field.name if field.name == stage.positional else "--" + field.name
            raise RequestError(f"{flag} needs at least one value (dfkd {name} --help lists the options)")
    return stage.config(**{f.name: getattr(resolved, f.name) for f in dataclasses.fields(shape)})


def _check_lists(config: type, arguments: Sequence[str]) -> None:
    """Raises: RequestError for an option of several values that is given twice: the parser would take the last one."""
    named = [argument.partition("=")[0].replace("_", "-") for argument in arguments]
    for name, hint in tables.field_hints(config).items():
        if typing.get_origin(hint) is tuple and named.count(flag := _flags(name)[0]) > 1:
            raise RequestError(f"{flag} is given twice; give all its values after one: {flag} A B")


def _flags(field: str) -> tuple[str, str]:
    flag = field.replace("_", "-")
    return f"--{flag}", f"--no-{flag}"


def _preset_name(arguments: Sequence[str]) -> str | None:
    """The preset has to be known before the other flags are parsed: its values are their defaults."""
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag == "--preset":
            if equals:
                return value
            if i + 1 < len(arguments):
                return arguments[i + 1]
    return None


def _shape(stage: Stage, preset: Mapping[str, Any]) -> type:
    """The configuration class as the parser is to see it: a preset's values are defaults, one field needs no flag."""
    import tyro

    hints = tables.field_hints(stage.config)
    changed: list[Any] = [(key, hints[key], value) for key, value in preset.items()]
    if stage.positional is not None:
        positional: Any = tyro.conf.Positional
        changed.append((stage.positional, positional[hints[stage.positional]]))
    return dataclasses.make_dataclass(stage.config.__name__, changed, bases=(stage.config,), frozen=True, kw_only=True)


def _one_line(box: str, needed: Sequence[str], positional: str | None) -> str:
    """What the parser's box says between its title and the next rule; where there are no box characters, the same."""
    lines = [line.strip("│ ") for line in box.splitlines()]
    blocks = [list(block) for rule, block in itertools.groupby(lines, lambda line: bool(_RULE.match(line))) if not rule]
    if lines and not _RULE.match(lines[0]):
        del blocks[:1]  # the title; a box has it in its upper edge
    said = " ".join(" ".join(blocks[0]).split()) if blocks else ""
    if said.startswith("Missing from"):
        named = [flag for flag in re.findall(r"--[a-z][a-z-]*", said) if flag in needed]
        return f"missing {', '.join(named) or positional}"
    wrong = re.match(r"Error parsing (\S+): no type matching (\S+) could be instantiated from \[(.*?)\]", said)
    wrong = wrong or re.match(r"Error parsing (\S+): .*?(int|float|INT|FLOAT).*?('[^']*')$", said)
    if wrong:
        return f"{wrong[1]}: {wrong[3]} is not {wrong[2].removeprefix('{None}|').upper()}"
    return said or "the command line cannot be parsed"


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
