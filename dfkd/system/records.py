"""Typed records of JSON and TOML tables: frozen dataclasses, with errors that name the wrong field."""

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

R = TypeVar("R")
TABLE = "table"
"""Name of a record's field that holds the whole table, including fields that the record does not declare."""
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "nothing"}


@dataclass(frozen=True)
class Holds:
    """Condition on a value beyond its type, for `Annotated`: a predicate, and its wording in error messages."""

    predicate: Callable[[Any], bool]
    what: str


Count = Annotated[int, Holds(lambda n: 0 <= n < 2**40, "from 0 to 2^40")]
FileName = Annotated[
    str, Holds(lambda s: "/" not in s and s not in ("", ".", ".."), "the name of a file in the folder")
]
"""Name of a file in the table's own folder. A path with a slash could lead to any file of the machine."""


def parse(kind: type[R], table: object, within: str = "") -> R:
    """Return a record of type `kind`, read from a table.

    Unknown fields stay in the record's field `table`, if the record has one. `within` is the table's name in error
    messages.
    Raises: ValueError, which names the field, if a field without default is missing, has another type or breaks a rule.
    """
    if not isinstance(table, Mapping):
        raise ValueError(f"{within or 'it'} is not a table")
    values: dict[str, Any] = {}
    for name, hint, required in _fields(kind):  # type: ignore[arg-type]
        if name == TABLE:
            values[name] = table
        elif name in table:
            values[name] = _value(hint, table[name], f"{within}.{name}" if within else name)
        elif required:
            raise ValueError(f"it has no {within}.{name}" if within else f"it has no {name}")
    return kind(**values)


def check_format(table: object, known: int) -> None:
    """Raise ValueError unless the table's field `format` is the version `known`."""
    if not isinstance(table, Mapping):
        raise ValueError("it is not a table")
    if "format" not in table:
        raise ValueError("it has no format")
    found = table["format"]
    if type(found) is not int or found != known:
        raise ValueError(f"it has format {found!r}; this version of dfkd reads {known}")


@cache
def _fields(kind: type) -> list[tuple[str, Any, bool]]:
    hints = get_type_hints(kind, include_extras=True)
    missing = dataclasses.MISSING
    return [
        (field.name, hints[field.name], field.default is missing and field.default_factory is missing)
        for field in dataclasses.fields(kind)
    ]


@cache
def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return a type hint's generic type and arguments. The cache serves lists, which have one hint for all items."""
    return get_origin(hint), get_args(hint)


def _value(hint: Any, value: Any, name: str) -> Any:
    """Return a value as its type hint says: tuples for lists, records for tables. Raises: ValueError as `parse`."""
    if hint is Any:
        return value
    origin, arguments = _parts(hint)
    if origin is Annotated:
        found = _value(arguments[0], value, name)
        for rule in arguments[1:]:
            if not rule.predicate(found):
                raise ValueError(f"{name} is not {rule.what}")
        return found
    if origin is Literal:
        if not isinstance(value, str) or value not in arguments:
            raise ValueError(f"{name} is not {' or '.join(arguments)}")
        return value
    if origin in (types.UnionType, Union):
        kinds = [argument for argument in arguments if argument is not type(None)]
        if value is None and len(kinds) < len(arguments):
            return None
        of_list = [kind for kind in kinds if (_parts(kind)[0] is tuple) == isinstance(value, list)]
        return _value((of_list or kinds)[0], value, name)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{name} is not a list")
        return tuple(_value(arguments[0], item, f"{name}[{number}]") for number, item in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} is not a table")
        return {key: _value(arguments[1], item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return parse(hint, value, name)
    if hint is float and type(value) in (int, float) and abs(value) < 2**1000 and math.isfinite(value):
        return float(value)
    if hint is float or type(value) is not hint:
        raise ValueError(f"{name} is not {_WORDS[hint]}")
    return value
