"""Calls of stages from Python: options from keywords, networks as objects, and errors that name parameters."""

import errno
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from types import FunctionType, TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from dfkd.config.option import field_hints, options
from dfkd.config.stage_table import STAGES, Stage, as_parameters
from dfkd.config.tables import check_mapping, describe, over_preset
from dfkd.data.locate import GivenData
from dfkd.models.find import OBJECT
from dfkd.models.own import GivenModel, OwnNetwork, Several
from dfkd.system import random_state
from dfkd.system.console import printing, ready_notebook, say
from dfkd.system.errors import RequestError, nearest, reason
from dfkd.system.portable import expand

TEACHERS = ("teacher", "mixing", "normalize", "image_size", "crop_pct", "interpolation", "device")
"""Options of a `Teacher`, which its methods therefore do not take."""
_turn = threading.RLock()
_Method = TypeVar("_Method", bound=Callable[..., Any])


class opened:
    """The context of a call, which prints if `verbose`.

    The text of a RequestError names parameters in place of command-line options. Its traceback ends at the call: the
    request is wrong, and not what lies below.
    """

    def __init__(self, verbose: bool) -> None:
        self._inside = ExitStack()
        self._entered: tuple[AbstractContextManager[Any], ...] = (printing(not verbose, as_parameters),)

    def __enter__(self) -> None:
        ready_notebook()
        for context in self._entered:
            self._inside.enter_context(context)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside.__exit__(kind, error, trace)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise RequestError(f"{error.filename}: {reason(error)}") from None
        if isinstance(error, RequestError) and trace is not None:
            error.args = (as_parameters(str(error)),)
            error.__traceback__ = TracebackType(None, trace.tb_frame, trace.tb_lasti, trace.tb_lineno)


class computing(opened):
    """The context of a call that builds or runs a network. It keeps the caller's random state and cuDNN settings.

    torch has one random state for all threads, so a second call waits for the end of the first. Within the call,
    torch's modes are those of a new process: the request decides the result, and not where the call stands.
    """

    def __init__(self, verbose: bool) -> None:
        super().__init__(verbose)
        self._entered = (*self._entered, _turn, _settings_kept(), _torch_modes())


@contextmanager
def _settings_kept() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    settings = cudnn.allow_tf32, cudnn.deterministic
    try:
        with random_state.kept():
            yield
    finally:
        cudnn.allow_tf32, cudnn.deterministic = settings


@contextmanager
def _torch_modes() -> Iterator[None]:
    """Have torch's modes in a block as they are in a new process: gradients, dtype, device and autocast."""
    dtype = torch.get_default_dtype()
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                modes.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":  # the mode slows every function of torch
            modes.enter_context(torch.device("cpu"))
        modes.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield


def configured(stage: Stage, given: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
    """Return the configuration of a stage from keywords `given` and the call's `own` values, over those of a preset.

    Raises: RequestError for an unknown keyword, with the nearest one, or a value that its declaration does not allow.
    """
    where = f"{stage.name}()"
    allowed = [name for name in field_hints(stage.options) if name not in own]
    for name in given:
        if name in TEACHERS and name in own:
            raise RequestError(f"{where} takes no {name}: it is given to dfkd.Teacher({name}=...)")
        if name not in allowed:
            raise RequestError(f"{where} has no parameter {name!r}{nearest(name, allowed)}")
    texts = {name: plain(value, name) for name, value in given.items()}
    keywords = check_mapping(stage.options, texts, where)
    values = over_preset(stage, {**keywords, **{name: value for name, value in own.items() if value is not None}})
    lacking = [f.name for f in fields(stage.options) if f.default is MISSING and values.get(f.name, ()) == ()]
    if lacking:
        raise RequestError(f"{where} lacks {', '.join(lacking)}")
    config = stage.options(**values)
    say(f"{stage.name}: {describe(config)}")
    return config


def network(value: Any, option: str) -> str | OwnNetwork:
    """Return a MODEL text or a folder as text, or wrap a module. Raises: RequestError for any other type."""
    if isinstance(value, nn.Module):
        _check_values(value, option)
        return OwnNetwork(value)
    if isinstance(value, (str, Path)):
        return path_text(value, option)
    raise RequestError(f"--{option} is a {type(value).__name__}, not a MODEL text or a torch.nn.Module")


def _check_values(module: nn.Module, option: str) -> None:
    """Raise RequestError for weights without values. A student's lazy layers get theirs from its first input."""
    lacking = (
        name
        for name, value in (*module.named_parameters(), *module.named_buffers())
        if value.is_meta or (option == "teacher" and is_lazy(value))
    )
    if first := next(lacking, None):
        raise RequestError(f"--{option}: weights of the module have no values yet, such as {first}; load them first")


def path_text(value: Any, option: str) -> str:
    """Return a path as text, with `~` and `$NAME` filled in. Raises: RequestError for any other type."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise RequestError(f"--{option} is a {type(value).__name__}, not a path as text or pathlib.Path")
    if "\0" in text:
        raise RequestError(f"--{option} {text!r} is not a path")
    filled: str = expand(text)
    return filled


def model_text(model: str | OwnNetwork) -> str:
    """Return the text of a model in a configuration."""
    return model if isinstance(model, str) else OBJECT + model.name


def teacher_text(model: GivenModel) -> str | tuple[str, ...]:
    """Return the text of a teacher in a configuration, or the texts of several teachers."""
    if isinstance(model, Several):
        return tuple(model_text(one.model) for one in model.teachers)
    return model_text(model)


def data_text(data: GivenData) -> str:
    """Return the text of DATA in a configuration."""
    return data if isinstance(data, str) else f"{OBJECT}{data.name}"


def with_options(name: str, *found: str) -> Callable[[_Method], _Method]:
    """Document the options of a stage as parameters of a method, except those of its `Teacher` and those in `found`."""
    stage = STAGES[name]

    def documented(method: _Method) -> _Method:
        signature = inspect.signature(method)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        hints, declared = field_hints(stage.options), options(stage.options)
        names = [f for f in fields(stage.options) if f.name not in (*signature.parameters, *TEACHERS, *found)]
        more = [
            inspect.Parameter(
                f.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if f.default is MISSING else f.default,
                annotation=hints[f.name],
            )
            for f in names
        ]
        method.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        shown = [f"    {f.name}: {as_parameters(declared[f.name].help)}" for f in names]
        method.__doc__ = "\n".join([inspect.getdoc(method) or "", "", "Options:", *shown])
        return method

    return documented


def plain(value: Any, name: str) -> Any:
    """Convert a keyword's value for a table of options.

    The result has Python numbers, and paths, devices, functions and classes as text.
    Raises: RequestError for other objects, such as one of a class where the class is needed.
    """
    if isinstance(value, (list, tuple)):
        return [plain(item, name) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (type, FunctionType)):
        return _dotted(value, name)
    if isinstance(value, (Path, torch.device, torch.dtype)):
        return str(value)
    if value is not None and not isinstance(value, (str, bool, int, float, bytes, dict, set)):
        raise RequestError(f"--{name} is a {type(value).__name__} object, not text, a number, a function or a class")
    return value


def _dotted(code: type | FunctionType, option: str) -> str:
    """Return the dotted name that imports a function or class, also one of a notebook's cell.

    Raises: RequestError if that name does not lead to it.
    """
    module, name = code.__module__, code.__qualname__
    if getattr(sys.modules.get(module), name, None) is not code:
        raise RequestError(
            f"--{option} is {module}.{name}, which cannot be found by this name: define it at the top of a file or "
            "cell, and give it under that name"
        )
    return f"{module}.{name}"
