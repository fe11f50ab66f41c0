"""Hash of what decides a module's outputs besides the weights: layers, their plain attributes, and loaded code."""

import hashlib
import inspect
import re
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dfkd.system.code import WITH_VERSION

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def code_identity(module: nn.Module) -> str:
    """Return a hash of everything but the weights: 16 hexadecimal digits.

    Classes and functions are hashed by their loaded byte code. A file may have changed since the import, and code that
    was typed into a notebook has no file. Functions, classes and plain values that the code names are followed.
    Packages whose version is stored with a result are not read. Other versions of Python give other byte code.
    """
    digest = hashlib.sha256()
    seen: set[int] = set()
    for line in _of_module(module, seen):
        digest.update(line.encode("utf-8", "backslashreplace") + b"\n")
    return digest.hexdigest()[:16]


def _of_module(module: nn.Module, seen: set[int]) -> Iterator[str]:
    yield _ADDRESS.sub("", repr(module))
    for name, layer in module.named_modules():
        yield f"{name}: {type(layer).__module__}.{type(layer).__qualname__}"
        yield from _of_class(type(layer), seen)
        if not _is_versioned(type(layer).__module__):
            # the caller sets `training`; names with _ are torch's, and hold the weights
            own = {k: v for k, v in vars(layer).items() if k != "training" and not k.startswith("_")}
            yield from _of_values(own, seen)


def _of_class(kind: type, seen: set[int]) -> Iterator[str]:
    for base in kind.__mro__:
        if id(base) in seen or _is_versioned(base.__module__):
            continue
        seen.add(id(base))
        members = {k: v for k, v in vars(base).items() if not (k.startswith("__") and isinstance(v, (str, dict, int)))}
        yield f"class {base.__qualname__}"
        yield from _of_values(members, seen)


def _of_values(values: Mapping[str, Any], seen: set[int]) -> Iterator[str]:
    """Yield the values that can decide an output, with their names."""
    for name, value in sorted(values.items()):
        if described := list(_of_value(value, seen)):
            yield f"{name} ="
            yield from described


def _of_value(value: Any, seen: set[int]) -> Iterator[str]:
    if isinstance(value, _PLAIN):
        yield repr(value)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _of_value(item, seen)
    elif isinstance(value, dict):
        yield from _of_values({str(key): item for key, item in value.items()}, seen)
    elif isinstance(value, (Tensor, np.ndarray)):
        array = value.detach().cpu().float().numpy() if isinstance(value, Tensor) else value
        yield f"{array.dtype}{list(array.shape)} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"
    elif isinstance(value, (staticmethod, classmethod, MethodType)):
        yield from _of_value(value.__func__, seen)
    elif isinstance(value, property):
        yield from _of_value(value.fget, seen)
    elif isinstance(value, type):
        yield f"{value.__module__}.{value.__qualname__}"
        yield from _of_class(value, seen)
    elif isinstance(value, FunctionType):
        yield from _of_function(value, seen)
    elif callable(value) and not isinstance(value, nn.Module):
        yield f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _of_function(function: FunctionType, seen: set[int]) -> Iterator[str]:
    yield f"{function.__module__}.{function.__qualname__}"
    if id(function) in seen or _is_versioned(function.__module__):
        return
    seen.add(id(function))
    yield from _of_code(function.__code__)
    yield from _of_value(function.__defaults__, seen)
    yield from _of_value(function.__kwdefaults__, seen)
    try:
        named = inspect.getclosurevars(function)
    except ValueError:  # an empty cell, whose function is not defined yet
        return
    yield from _of_values({**named.globals, **named.nonlocals}, seen)


def _of_code(code: CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    yield repr((code.co_names, code.co_varnames, code.co_freevars))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _of_code(constant)
        else:  # the order of a set differs between processes
            yield repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)


def _is_versioned(module: str | None) -> bool:
    return (module or "").partition(".")[0] in (*WITH_VERSION, "builtins", "abc", "typing")
