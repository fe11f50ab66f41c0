"""The text `NAME[:key=value,...]`: parsed, its values converted, and the class or function that NAME imports.

A NAME without a dot is looked up in the modules that the caller names; a NAME with dots is imported. So the import is
the registration, and something of one's own is used without an edit of this package. Importing runs that module's code.
What is done with it is in `components`.
"""

import ast
import importlib
import os
import re
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dfkd.system.errors import RequestError, nearest
from dfkd.system.foreign import Foreign, line_of
from dfkd.system.limits import Range


@dataclass(frozen=True)
class Named:
    """A parsed `NAME[:item,...]`: `options` are its `key=value` items, `numbers` the items without a key."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    numbers: tuple[float, ...] = ()

    def __str__(self) -> str:
        """The canonical spelling, which parses to the same value."""
        items = [_number(number) for number in self.numbers] + [f"{k}={_spelled(v)}" for k, v in self.options.items()]
        return self.name + (":" + ",".join(items) if items else "")


def parse(text: str) -> Named:
    """Parse `NAME`, `NAME:0.5` or `NAME:key=value,key=value`; commas inside brackets or quotes do not separate.

    Raises: RequestError for an empty name, an item that is neither a number nor `key=value`, or a repeated key.
    """
    name, colon, rest = text.partition(":")
    name = name.strip()
    if not name or (colon and not rest.strip()):
        raise RequestError(f"{text!r} is not NAME or NAME:key=value,...")
    options: dict[str, Any] = {}
    numbers: list[float] = []
    for item in _split(rest) if colon else []:
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals:
            try:
                numbers.append(float(item))
            except ValueError:
                hint = f"write KEY={item} with the parameter's name"
                raise RequestError(f"in {text!r}, {item!r} is neither a number nor key=value; {hint}") from None
        elif not key.isidentifier() or key in options:
            why = "is given twice" if key in options else "is not a parameter's name"
            raise RequestError(f"in {text!r}, {key!r} {why}")
        else:
            options[key] = _value(value)
    return Named(name, options, tuple(numbers))


def find(name: str, modules: Sequence[str], kind: str) -> Callable[..., Any]:
    """The class or function called `name`: in one of `modules` where it has no dot (exactly, else by any case of the
    names in `__all__`), imported where it has one.

    Raises: RequestError, with the nearest known name, when there is none or it cannot be called.
    """
    if "." in name:
        return _imported(name, kind)
    known: set[str] = set()
    for module in map(importlib.import_module, modules):
        listed = getattr(module, "__all__", None)
        public = listed or [n for n in dir(module) if not n.startswith("_") and callable(getattr(module, n))]
        by_case = {n.lower(): n for n in public} if listed else {}
        actual = name if name in public else by_case.get(name.lower())
        if actual is not None:
            return _callable(getattr(module, actual), name, kind)
        known.update(by_case or public)
    several = re.split(r"[\s,+]+", name)
    if len(several) > 1 and {word.lower() for word in several} & known:
        hint = f"give each as a value of its own: {' '.join(several)}"
        raise RequestError(f"{name!r} is not the name of one {kind}; {hint}")
    raise RequestError(
        f"no {kind} is called {name!r}{nearest(name.lower(), known)} (your own is named with dots: my_package.{name})"
    )


def converted(target: Callable[..., Any], options: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Each value as the type that its parameter is annotated with. Raises: RequestError as `convert`."""
    annotated = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    try:
        hints = typing.get_type_hints(annotated, include_extras=True)
    except Exception:  # annotations of foreign code need not resolve
        hints = {}
    return {key: convert(value, hints.get(key), f"{name}:{key}") for key, value in options.items()}


def _split(text: str) -> list[str]:
    """Split at the commas that stand outside brackets and quotes."""
    items, depth, quote, start = [], 0, "", 0
    for i, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == "," and depth == 0:
            items.append(text[start:i])
            start = i + 1
    return [item.strip() for item in [*items, text[start:]]]


def _number(number: float) -> str:
    """The short spelling where it is exact."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def _spelled(value: Any) -> str:
    """A value as `parse` reads it back; text that would be read as something else is quoted."""
    text = str(value)
    return repr(value) if isinstance(value, str) and (_value(text) != value or _split(text) != [text]) else text


def _value(text: str) -> Any:
    """A Python literal, `true`, `false` or `none`, else the text itself."""
    text = text.strip()
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


WORDS = {int: "a whole number", float: "a number", bool: "true or false"}
"""What messages call the values of a type."""


def convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated simple type; a hint that is no simple type lets everything through.

    Raises: RequestError that begins with `where` and names the value and the type, or the `Range` that it is out of.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        number = convert(value, arguments[0], where)
        for declared in arguments[1:]:
            if isinstance(declared, Range):
                declared.check(**{where: number})
        return number
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise RequestError(f"{where}={value} is not one of {', '.join(map(str, arguments))}")
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return convert(value, option, where)
            except RequestError:
                continue
        some = [option for option in arguments if option is not type(None)]
        if len(some) == 1:
            return convert(value, some[0], where)  # which says what it may be
        raise RequestError(f"{where}={value} is not {' or '.join(getattr(a, '__name__', str(a)) for a in arguments)}")
    if hint is type(None) and value is not None:
        raise RequestError(f"{where}={value} is not none")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str:
        if isinstance(value, (list, tuple, dict, set, bytes)) or "\0" in str(value):
            raise RequestError(f"{where}={value} is not text")
        return value if isinstance(value, str) else str(value)  # as it is: an expanded text remembers its spelling
    if hint in (int, float, bool) and type(value) is not hint:
        raise RequestError(f"{where}={value!r} is not {WORDS[hint]}")
    if origin is tuple and arguments[1:] == (...,):
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(convert(item, arguments[0], where) for item in items)
    return value


@contextmanager
def settings_kept() -> Iterator[None]:
    """Code of others may silence warnings in the block, but not turn ours into errors, nor change what numbers are."""
    before, torch, folder = list(warnings.filters), sys.modules.get("torch"), os.getcwd()
    settings = (torch.get_default_dtype(), torch.is_grad_enabled()) if torch is not None else None
    try:
        yield
    finally:
        if torch is not None and settings is not None:
            torch.set_default_dtype(settings[0])
            torch.set_grad_enabled(settings[1])
        os.chdir(folder)
        kept = [found for found in warnings.filters if found[0] != "error" or found in before]
        if len(kept) < len(warnings.filters):
            warnings.resetwarnings()  # so that Python forgets what it has looked up
            warnings.filters[:] = kept  # type: ignore[index]


def _imported(name: str, kind: str) -> Callable[..., Any]:
    """Import `package.module.attribute`, also from the working folder, as `python -m` would."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    module_name, _, attribute = name.rpartition(".")
    arguments, sys.argv = sys.argv, [module_name]  # those of dfkd are none of the module's
    what = f"{kind} {name!r} cannot be imported:"
    try:
        with Foreign(what, always=True), settings_kept():
            module = _import(module_name, what)
            if not hasattr(module, attribute):
                public = [n for n in dir(module) if not n.startswith("_")]
                raise RequestError(f"module {module_name!r} has no {attribute!r}{nearest(attribute, public)}")
            return _callable(getattr(module, attribute), name, kind)
    finally:
        sys.argv = arguments


def _import(module_name: str, what: str) -> types.ModuleType:
    try:
        return importlib.import_module(module_name)
    except SystemExit as error:
        hint = "put its script behind if __name__ == '__main__'"
        why = f"module {module_name!r} ends the program when it is imported (exit {error.code})"
        raise RequestError(f"{what} {why}{line_of(error)}; {hint}") from None
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        raise RequestError(f"{what} there is no module {error.name!r}") from None
    except (ValueError, TypeError) as error:
        if line_of(error):
            raise
        raise RequestError(f"{what} {error}") from error  # a name that begins with dots


def _callable(found: Any, name: str, kind: str) -> Callable[..., Any]:
    if not callable(found):
        raise RequestError(f"{kind} {name!r} is a {type(found).__name__}, not a class or function")
    return found
