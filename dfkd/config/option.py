"""One declaration per option: everything about it that is not its type stands where it is declared."""

import dataclasses
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from dfkd.system.errors import RequestError
from dfkd.system.limits import Range

Section = Literal["data", "models", "selection", "learning", "training", "augmentation", "output", "machine"]
"""A section of `--help`."""

Role = Literal["decides", "resolved", "none"]
"""decides: the result depends on the value, which is part of the request's identity.
resolved: the result depends on what the value names or becomes, which stands there instead.
none: the result does not depend on it."""

Reads = Literal["model", "data", "selection"]
"""What the text of an option names, where it names something to open."""

_NOTHING = object()


@dataclass(frozen=True)
class Option:
    """What is declared of an option beside its name, type and default."""

    help: str
    section: Section
    range: Range | None = None
    role: Role = "decides"
    machine: bool = False
    """Whether it speaks of the machine: it may differ between two runs of one pipeline's row."""
    shown: bool = True
    """Whether a comparison of runs shows it."""
    stored: bool = True
    """Whether a selection's manifest lists it under `config`; what is not listed stands elsewhere in the manifest."""
    off: Any = _NOTHING
    """The value that turns it off: a request with that value is the same as one from before the option existed."""
    open: bool = False
    """Whether the stage replaces the default by what suits the networks and images."""
    shared: bool = True
    """Whether the [defaults] of a pipeline reach it."""
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
    """A field of a stage's configuration; one without a default is required. `declared` as the fields of `Option`.

    The bounds stand here or, where a parameter has the same, in a `range` of `dfkd.system.limits`.
    """
    bounds = range or Range(least, above, most, below)
    made = Option(help, section, None if bounds == Range() else bounds, **declared)
    return dataclasses.field(default=default, metadata={"option": made})


def options(config: type) -> dict[str, Option]:
    """The options of a stage's configuration class by name, in the order in which they are declared."""
    return {field.name: field.metadata["option"] for field in dataclasses.fields(config)}


@cache
def _hints(config: type) -> dict[str, Any]:
    """The types, which are resolved once: a command asks for them many times."""
    return typing.get_type_hints(config)


def field_hints(config: type) -> dict[str, Any]:
    """The options of a stage's configuration class with their types."""
    hints = _hints(config)
    return {field.name: hints[field.name] for field in dataclasses.fields(config)}


def named(config: type, has: Callable[[Option], bool]) -> frozenset[str]:
    """The names of the options of which `has` is true."""
    return frozenset(name for name, declared in options(config).items() if has(declared))


def is_off(config: type, name: str, value: Any) -> bool:
    """Whether `value` turns the option off; False for one that cannot be turned off."""
    declared = options(config).get(name)
    return declared is not None and declared.off is not _NOTHING and bool(declared.off == value)


class Checked:
    """A configuration that refuses numbers out of range, whether they come from a flag, a preset or a pipeline."""

    def __post_init__(self) -> None:
        for name, declared in options(type(self)).items():
            given = getattr(self, name)
            if declared.range is None or given is None:
                continue
            for value in given if isinstance(given, tuple) else (given,):
                if not declared.range.holds(value):
                    raise RequestError(f"--{name.replace('_', '-')} {value} is not {declared.range}")
