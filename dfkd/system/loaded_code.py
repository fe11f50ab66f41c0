"""The identity of code as it is loaded: byte code and plain values, for what has no file that could be read."""

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dfkd.system.versions import WITH_VERSION

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


def loaded_code(target: object) -> str:
    """Return a hash of a class or function as it is loaded, and of what its code names: 16 hexadecimal digits.

    Functions, classes and plain values are followed, also those of other cells of a notebook. Packages whose version is
    stored with a result are not read. Other versions of Python give other byte code.
    """
    return digest_of(of_value(target, set()))


def digest_of(lines: Iterator[str]) -> str:
    """Return a hash of lines: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "backslashreplace") + b"\n")
    return digest.hexdigest()[:16]


def of_class(kind: type, seen: set[int]) -> Iterator[str]:
    """Yield the members of a class and of its bases, but for those in `seen`."""
    for base in kind.__mro__:
        if id(base) in seen or is_versioned(base.__module__):
            continue
        seen.add(id(base))
        members = {k: v for k, v in vars(base).items() if not (k.startswith("__") and isinstance(v, (str, dict, int)))}
        yield f"class {base.__qualname__}"
        yield from of_values(members, seen)


def of_values(values: Mapping[str, Any], seen: set[int]) -> Iterator[str]:
    """Yield the values that can decide an output, with their names."""
    for name, value in sorted(values.items()):
        if described := list(of_value(value, seen)):
            yield f"{name} ="
            yield from described


def of_value(value: Any, seen: set[int]) -> Iterator[str]:
    """Yield what a value is; nothing where it cannot decide an output."""
    if isinstance(value, _PLAIN):
        yield repr(value)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from of_value(item, seen)
    elif isinstance(value, dict):
        yield from of_values({str(key): item for key, item in value.items()}, seen)
    elif isinstance(value, (Tensor, np.ndarray)):
        array = value.detach().cpu().float().numpy() if isinstance(value, Tensor) else value
        yield f"{array.dtype}{list(array.shape)} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"
    elif isinstance(value, (staticmethod, classmethod, MethodType)):
        yield from of_value(value.__func__, seen)
    elif isinstance(value, property):
        yield from of_value(value.fget, seen)
    elif isinstance(value, type):
        yield f"{value.__module__}.{value.__qualname__}"
        yield from of_class(value, seen)
    elif isinstance(value, FunctionType):
        yield from _of_function(value, seen)
    elif callable(value) and not isinstance(value, nn.Module):
        yield f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _of_function(function: FunctionType, seen: set[int]) -> Iterator[str]:
    yield f"{function.__module__}.{function.__qualname__}"
    if id(function) in seen or is_versioned(function.__module__):
        return
    seen.add(id(function))
    yield from _of_code(function.__code__)
    yield from of_value(function.__defaults__, seen)
    yield from of_value(function.__kwdefaults__, seen)
    try:
        named = inspect.getclosurevars(function)
    except ValueError:  # an empty cell, whose function is not defined yet
        return
    yield from of_values({**named.globals, **named.nonlocals}, seen)


def _of_code(code: CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    yield repr((code.co_names, code.co_varnames, code.co_freevars))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _of_code(constant)
        else:  # the order of a set differs between processes
            yield repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)


def is_versioned(module: str | None) -> bool:
    """Whether the code of a module is known by the version of its package."""
    return (module or "").partition(".")[0] in (*WITH_VERSION, "builtins", "abc", "typing")
