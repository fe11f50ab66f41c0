"""Parsing of a command line into the configuration of a stage, from the declarations of the options."""

import argparse
import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from dfkd.config import tables, texts
from dfkd.config.option import Option, field_hints, options
from dfkd.config.stage_table import Stage
from dfkd.system.errors import RequestError, nearest

_SECTIONS = {
    "data": "data",
    "models": "teacher and student",
    "selection": "selection",
    "learning": "losses and targets",
    "training": "training",
    "augmentation": "augmentation",
    "output": "output",
    "machine": "device, seed and presets",
}
"""Titles of the sections of `--help`, in order. The required options come before these sections."""

QUIET = "--quiet"
"""Flag of every command. It is not an option of a stage and decides no result."""
_VALUELESS = object()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message} ({self.prog} --help lists the options)")


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        """Format values without brackets. The parser accepts an option without a value, but the option needs one."""
        shown = str(action.metavar or default_metavar)
        return f"{shown} ..." if action.nargs == "*" else shown


def parse_arguments(stage: Stage, arguments: Sequence[str]) -> Any:
    """Return the configuration of a stage from its command line, or None after printing the help.

    The command line overrides the values of the preset. Raises: RequestError for whatever cannot be parsed, in one
    line.
    """
    prog, config = f"dfkd {stage.name}", stage.options
    parser = _parser(prog, config, stage.example)
    words = [_hyphenated(argument) for argument in arguments]
    found, unknown = parser.parse_known_intermixed_args(words)
    if found.help:
        print(parser.format_help())
        return None
    hint = f"({prog} --help lists the options)"
    if unknown:
        flag = unknown[0].partition("=")[0]
        if flag.startswith("--"):
            raise RequestError(f"there is no option {flag!r}{nearest(flag, _flags(config))}")
        raise RequestError(f"{unknown[0]!r} belongs to no option{_taken(words, unknown[0])} {hint}")
    given = {key: value for key, value in vars(found).items() if key not in ("help", QUIET.lstrip("-"))}
    try:
        flags = {key: _value(key, value, field_hints(config)[key]) for key, value in given.items()}
    except ValueError as error:
        raise RequestError(f"{error} {hint}") from None
    values = tables.over_preset(stage, flags)
    _check_required(config, values, hint)
    return config(**values)


def _taken(words: Sequence[str], word: str) -> str:
    """Return which option already has its only value, if `word` comes after that value."""
    for flag, value, further in zip(words, words[1:], words[2:], strict=False):
        one_value = flag.startswith("--") and "=" not in flag and not value.startswith("--")
        if further == word and one_value and not word.startswith("-"):
            return f": {flag} takes one value"
    return ""


def _check_required(config: type, values: Mapping[str, Any], hint: str) -> None:
    required = [f.name for f in dataclasses.fields(config) if f.default is dataclasses.MISSING]
    missing = [_shown(config, name) for name in required if name not in values]
    if missing:
        raise RequestError(f"missing {', '.join(missing)} {hint}")
    for name in required:
        if values[name] in ((), ""):
            raise RequestError(f"{_shown(config, name)} needs at least one value {hint}")


def _parser(prog: str, config: type, example: str) -> _Parser:
    """Build a parser that reads every value as text and requires none, so that later checks word the errors."""
    parser = _Parser(
        prog,
        usage=f"{prog} {_positional_usage(config)}[OPTIONS]",
        description=config.__doc__,
        epilog=f"example:\n  {example}" if example else None,
        formatter_class=_Help,
        allow_abbrev=False,
        add_help=False,
    )
    required = parser.add_argument_group("required")
    groups = {section: parser.add_argument_group(title) for section, title in _SECTIONS.items()}
    hints = field_hints(config)
    for field in dataclasses.fields(config):
        declared = options(config)[field.name]
        needed = field.default is dataclasses.MISSING
        _add(required if needed else groups[declared.section], field, declared, hints[field.name])
    groups["output"].add_argument(QUIET, action="store_true", help="Print results and errors only.")
    groups["machine"].add_argument("-h", "--help", action="store_true", help="Show this help.")
    return parser


def _add(group: Any, field: "dataclasses.Field[Any]", declared: Option, hint: Any) -> None:
    kind, several = texts.kind_of(hint)
    text = (declared.help + _default(field, declared)).replace("%", "%%")
    metavar = texts.metavar(kind, declared.reads, declared.help)
    if declared.positional:
        counted: dict[str, Any] = {"nargs": "*", "action": "append"} if several else {"nargs": "?"}
        metavar = (field.name.rstrip("s") if several else field.name).upper()
        group.add_argument(field.name, default=argparse.SUPPRESS, metavar=metavar, help=text, **counted)
        return
    shared: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": text}
    if kind is bool:
        group.add_argument(texts.flag(field.name), action=argparse.BooleanOptionalAction, **shared)
    elif several:
        group.add_argument(texts.flag(field.name), nargs="*", action="append", metavar=metavar, **shared)
    else:
        group.add_argument(texts.flag(field.name), nargs="?", const=_VALUELESS, metavar=metavar, **shared)


def _value(name: str, given: Any, hint: Any) -> Any:
    """Convert the command line's value of an option to its type.

    Raises: ValueError that names the option and the value.
    """
    kind, several = texts.kind_of(hint)
    if several:
        if len(given) > 1:
            shown = texts.flag(name)
            raise ValueError(f"{shown} is given twice; give all its values after one: {shown} A B")
        values = tuple(texts.value(name, text, hint) for text in given[0])
        return values[0] if len(values) == 1 and typing.get_origin(hint) is not tuple else values
    if given is _VALUELESS:
        raise ValueError(f"{texts.flag(name)} needs a value")
    return given if kind is bool else texts.value(name, given, hint)


def _default(field: "dataclasses.Field[Any]", declared: Option) -> str:
    """Return the default as the end of an option's help.

    It is empty without a default value, or if the help states it.
    """
    if field.default in (dataclasses.MISSING, None, ()) or "Default:" in declared.help:
        return ""
    value = {True: "on", False: "off"}[field.default] if isinstance(field.default, bool) else field.default
    return f" Default: {value}."


def _shown(config: type, name: str) -> str:
    """Return the name of an option as messages show it."""
    return name if options(config)[name].positional else texts.flag(name)


def _flags(config: type) -> list[str]:
    """Return every flag of a stage, to suggest the one nearest to a wrong flag."""
    named = [name for name, declared in options(config).items() if not declared.positional]
    switches = [name for name in named if field_hints(config)[name] is bool]
    return ["--help", QUIET, *map(texts.flag, named), *(texts.flag(f"no_{name}") for name in switches)]


def _hyphenated(argument: str) -> str:
    """Replace `_` by `-` in a flag, such as `--image_size=32`.

    Flags within one text, as for `--also`, are a value. A leading space keeps the parser from reading it as a flag.
    """
    flag, equals, value = argument.partition("=")
    if " " in flag.strip():
        return f" {argument}" if flag.startswith("--") else argument
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else argument


def _positional_usage(config: type) -> str:
    found = [name.upper() for name, declared in options(config).items() if declared.positional]
    return f"{found[0]} " if found else ""
