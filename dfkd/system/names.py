"""The text `NAME[:key=value,...]`: parser, conversion of values, and import of NAME's class or function.

A NAME without a dot is looked up in the modules that the caller gives. A NAME with dots is imported, which runs its
module's code. A user's own class or function therefore needs no registration. `components` builds on this module.
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
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dfkd.system.errors import RequestError, nearest
from dfkd.system.foreign import Foreign, line_of
from dfkd.system.limits import Range


@dataclass(frozen=True)
class Named:
    """Parsed text `NAME[:item,...]`: `options` holds the `key=value` items, `numbers` the items without a key."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    numbers: tuple[float, ...] = ()

    def __str__(self) -> str:
        """Return the canonical spelling, which `parse` reads back as an equal value."""
        items = [_number(number) for number in self.numbers] + [f"{k}={_spelled(v)}" for k, v in self.options.items()]
        return self.name + (":" + ",".join(items) if items else "")


def parse(text: str) -> Named:
    """Parse `NAME`, `NAME:0.5` or `NAME:key=value,key=value`. Commas within brackets or quotes do not separate items.

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
    """Return the class or function that `name` stands for.

    A name with a dot is imported. A name without a dot is looked up in `modules`: as it is written, then without regard
    to case in a module's `__all__`.
    Raises: RequestError, with the most similar known name, if there is none or if it is not callable.
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
        known.update(by_case or [n for n in public if n.islower()] or public)  # torchvision's classes are no names here
    several = re.split(r"[\s,+]+", name)
    if len(several) > 1 and {word.lower() for word in several} & known:
        hint = f"give each as a value of its own: {' '.join(several)}"
        raise RequestError(f"{name!r} is not the name of one {kind}; {hint}")
    raise RequestError(
        f"no {kind} is called {name!r}{nearest(name.lower(), known)} (your own is named with dots: my_package.{name})"
    )


def converted(target: Callable[..., Any], options: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the options with each value converted to its parameter's annotation. Raises: RequestError as `convert`."""
    annotated = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    try:
        hints = typing.get_type_hints(annotated, include_extras=True)
    except Exception:  # annotations of foreign code may not resolve
        hints = {}
    return {key: convert(value, hints.get(key), f"{name}:{key}") for key, value in options.items()}


def _split(text: str) -> list[str]:
    """Return the text's items, split at commas outside brackets and quotes."""
    items, depth, quote, start, escaped = [], 0, "", 0, False
    for i, char in enumerate(text):
        if quote:  # in it a backslash escapes the next character, as `repr` writes a text with both kinds of quotes
            quote = "" if char == quote and not escaped else quote
            escaped = char == "\\" and not escaped
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
    """Return a number's short spelling if it is exact, else its `repr`."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def _spelled(value: Any) -> str:
    """Return a value's spelling, which `parse` reads back. Text that would be parsed as another value is quoted."""
    text = str(value)
    plain = _value(text) == value and _split(f"{text},") == [text, ""]  # an open quote would take in the next item
    return repr(value) if isinstance(value, str) and not plain else text


def _value(text: str) -> Any:
    """Return the value of a Python literal, `true`, `false` or `none`. Other text is returned as it is."""
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
    """Return `value` converted to an annotation. An annotation that is not a simple type accepts every value.

    Raises: RequestError, which begins with `where` and names the value and its type or `Range`.
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
        if value is None and type(None) in arguments:  # not the text "None"
            return None
        for option in arguments:
            try:
                return convert(value, option, where)
            except RequestError:
                continue
        some = [option for option in arguments if option is not type(None)]
        if len(some) == 1:
            return convert(value, some[0], where)  # its error names the allowed values
        raise RequestError(f"{where}={value} is not {' or '.join(getattr(a, '__name__', str(a)) for a in arguments)}")
    if hint is type(None) and value is not None:
        raise RequestError(f"{where}={value} is not none")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str:
        if isinstance(value, (list, tuple, dict, set, bytes)) or "\0" in str(value):
            raise RequestError(f"{where}={value} is not text")
        return value if isinstance(value, str) else str(value)  # not str(value): an Expanded text keeps its $NAME
    if hint in (int, float, bool) and type(value) is not hint:
        raise RequestError(f"{where}={value!r} is not {WORDS[hint]}")
    if origin is tuple and arguments[1:] == (...,):
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(convert(item, arguments[0], where) for item in items)
    return value


@contextmanager
def settings_kept() -> Iterator[None]:
    """Restore torch's default dtype, its gradient mode and the working folder after a block that runs foreign code.

    Filters that turn warnings into errors are removed if they are new. New filters that silence warnings stay.
    """
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
            warnings.resetwarnings()  # also clears Python's cache of matched filters
            warnings.filters[:] = kept  # type: ignore[index]


def _imported(name: str, kind: str) -> Callable[..., Any]:
    """Return the imported `package.module.attribute`. The working folder is searched too, as by `python -m`."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    module_name, _, attribute = name.rpartition(".")
    arguments, sys.argv = sys.argv, [module_name]  # the module must not parse dfkd's arguments
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
        near = [] if "." in error.name else get_close_matches(error.name, _modules_here(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RequestError(f"{what} there is no module {error.name!r}{hint}") from None
    except (ValueError, TypeError) as error:
        if line_of(error):
            raise
        raise RequestError(f"{what} {error}") from error  # a name that begins with dots


def _modules_here() -> list[str]:
    """Return the names of the modules in the working folder."""
    found = [path for path in Path.cwd().iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    return [path.stem for path in found]


def _callable(found: Any, name: str, kind: str) -> Callable[..., Any]:
    if not callable(found):
        raise RequestError(f"{kind} {name!r} is a {type(found).__name__}, not a class or function")
    return found
