"""Declarations of options: everything about an option except its type, in one place."""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from dfkd.config.texts import flag
from dfkd.system.errors import RequestError
from dfkd.system.limits import Range

Section = Literal["data", "models", "selection", "learning", "training", "augmentation", "output", "machine"]
"""Section of `--help` in which an option is listed."""

Role = Literal["decides", "resolved", "none"]
"""How the result depends on an option.

- decides: the result depends on the value, which is part of the request's identity.
- resolved: the result depends on what the value names or becomes. The identity holds the resolved value.
- none: the result does not depend on the option.
"""

Reads = Literal["model", "data", "selection"]
"""Kind of object that an option's text names, if the stage opens the object."""

_NOTHING = object()


@dataclass(frozen=True)
class Option:
    """Declaration of an option, apart from its name, type and default."""

    help: str
    section: Section
    range: Range | None = None
    role: Role = "decides"
    machine: bool = False
    """Whether the option describes the machine. Two runs of one pipeline's row may differ in such options."""
    shown: bool = True
    """Whether comparisons of runs show the option."""
    stored: bool = True
    """Whether a selection's manifest lists the option under `config`. Other options are elsewhere in the manifest."""
    off: Any = _NOTHING
    """Value that turns the option off. A request with this value equals a request from before the option existed."""
    open: bool = False
    """Whether the stage replaces the default by a value that suits the networks and images."""
    shared: bool = True
    """Whether the [defaults] of a pipeline apply to the option."""
    reads: Reads | None = None
    positional: bool = False


def option(
    help: str,
    section: Section,
    *,
    default: Any = dataclasses.MISSING,
    least: int | float | None = None,
    above: int | float | None = None,
    most: int | float | None = None,
    below: int | float | None = None,
    range: Range | None = None,
    **declared: Any,
) -> Any:
    """Return a field of a stage's configuration. A field without a default is required.

    Bounds are given here, or as a `range` from `dfkd.system.limits` if a parameter has the same bounds. `declared` sets
    other fields of `Option`.
    """
    bounds = range or Range(least, above, most, below)
    made = Option(help, section, None if bounds == Range() else bounds, **declared)
    return dataclasses.field(default=default, metadata={"option": made})


def options(config: type) -> dict[str, Option]:
    """Return the options of a stage's configuration class by name, in the order of their declaration."""
    return {field.name: field.metadata["option"] for field in dataclasses.fields(config)}


@cache
def _hints(config: type) -> dict[str, Any]:
    """Return the resolved types of a class's fields. One command needs them many times."""
    return typing.get_type_hints(config)


def field_hints(config: type) -> dict[str, Any]:
    """Return the types of the options of a stage's configuration class by name."""
    hints = _hints(config)
    return {field.name: hints[field.name] for field in dataclasses.fields(config)}


def named(config: type, has: Callable[[Option], bool]) -> frozenset[str]:
    """Return the names of the options for which `has` is true."""
    return frozenset(name for name, declared in options(config).items() if has(declared))


def is_off(config: type, name: str, value: Any) -> bool:
    """Return whether `value` turns the option off. The result is False for options that cannot be turned off."""
    declared = options(config).get(name)
    return declared is not None and declared.off is not _NOTHING and bool(declared.off == value)


def check_ranges(config: type, values: Mapping[str, Any]) -> None:
    """Raise RequestError if one of the values of options is out of range."""
    for name, declared in options(config).items():
        given = values.get(name)
        if declared.range is None or given is None:
            continue
        for value in given if isinstance(given, tuple) else (given,):
            if not declared.range.holds(value):
                raise RequestError(f"{flag(name)} {value} is not {declared.range}")


class Checked:
    """Base class of configurations that refuse numbers out of range, from flags, presets and pipelines alike."""

    def __post_init__(self) -> None:
        check_ranges(type(self), vars(self))
