import dataclasses
import fcntl
import functools
import inspect
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ForwardRef, Literal, get_args, get_origin

import jaxtyping
import numpy as np
import pytest
import torch
from beartype import beartype

torch.set_num_threads(1)  # two threads that wait for each other are slower on networks of this size

_jaxtyped = jaxtyping.jaxtyped
_names_of_one_call = _jaxtyped("context")
_numbers = itertools.count()


def _checked(**options: Any) -> Callable[[Any], Any]:
    """`jaxtyping.jaxtyped`, quicker: beartype alone where there are no shapes, and one pass over the arguments.

    jaxtyping itself binds the arguments and checks them twice at every call, for its messages. It is needed for a size
    that is written as `{argument}`, for a class that is named by a string, and for a generator, which runs later.

    A function within another one is left to mypy: its check would be compiled at every call of that. No such function
    of dfkd has an array's shape among its annotations.
    """

    def decorate(checked: Any) -> Any:
        if "<locals>" in checked.__qualname__:
            return checked
        if inspect.isclass(checked):
            if dataclasses.is_dataclass(checked) and "__init__" in vars(checked):
                checked.__init__ = decorate(checked.__init__)
            return checked
        hints = [part for hint in checked.__annotations__.values() for part in _parts(hint)]
        of_names = any(isinstance(hint, str | ForwardRef) or "{" in str(hint) for hint in hints)
        of_arrays = any(inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray) for hint in hints)
        if of_names or (of_arrays and inspect.isgeneratorfunction(checked)):
            return _jaxtyped(checked, **options)
        return _with_shapes(beartype(checked)) if of_arrays else beartype(checked)

    return decorate


def _with_shapes(checked: Callable[..., Any]) -> Callable[..., Any]:
    """A function in whose arguments and result, checked by beartype, a name of a size means one number."""

    @functools.wraps(checked)
    def call(*arguments: Any, **options: Any) -> Any:
        with _names_of_one_call:
            return checked(*arguments, **options)

    return call


def _parts(annotation: Any) -> Iterator[Any]:
    """An annotation and all that it is made of, but for the values of a `Literal`."""
    yield annotation
    parts = annotation if isinstance(annotation, list) else get_args(annotation)  # a list: the arguments of a Callable
    for part in () if get_origin(annotation) is Literal else parts:
        yield from _parts(part)


jaxtyping.jaxtyped = _checked  # looked up by every module of dfkd when it is imported


def pytest_configure() -> None:
    """Tests send SIGINT: a shell that starts pytest in the background has it ignored, in the tests' children too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow the tests that run a whole script of `benchmarks`, or several processes."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here / "benchmarks") or item.path.is_relative_to(here / "distributed"):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Any:
    """Fail a test that an interrupt escapes from: it would end the worker, and pytest-xdist then waits at its end."""
    try:
        return (yield)
    except KeyboardInterrupt as error:
        if "PYTEST_XDIST_WORKER" not in os.environ:  # the terminal's
            raise
        raise RuntimeError("an interrupt has escaped from the test") from error


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test reads or fills the user's cache, and none sees another's; the folder is made where it is needed."""
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path_factory.getbasetemp() / f"cache-{next(_numbers)}"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """No test leaves other threads behind: later ones would round otherwise, and be slow."""
    yield
    assert torch.get_num_threads() == 1


@pytest.fixture(autouse=True)
def _own_patches(monkeypatch):
    """What a test puts into the code and raises there is not an error of a user's network or loss."""
    from dfkd.system import foreign  # not above: modules are imported after `_checked` is in its place

    monkeypatch.setattr(foreign, "_LIBRARIES", foreign._LIBRARIES | {"tests", "_pytest", "pytest"})


@pytest.fixture(autouse=True)
def _no_hurry(monkeypatch):
    """A test that is slow to react to a signal fails; the process that runs it is not ended."""
    monkeypatch.setattr("dfkd.system.signals.GRACE", 300.0)


@pytest.fixture(scope="session")
def digits_teacher(tmp_path_factory) -> Path:
    """The weights of a `demo.TEACHER` of the first 1,000 digits, trained once for all workers."""
    from safetensors.torch import save_file

    from dfkd.app import demo

    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    weights = folder / "digits-teacher.safetensors"
    with (folder / "digits-teacher.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not weights.exists():
            images, labels = demo.digits()
            teacher = demo.train_teacher(images[:1000], labels[:1000], epochs=6)
            save_file(teacher.state_dict(), weights.with_suffix(".partial"))
            weights.with_suffix(".partial").rename(weights)
    return weights


@pytest.fixture(scope="session")
def manifest_of() -> Callable[..., dict[str, Any]]:
    """A manifest of shards with every field that one has, for `write_manifest`; keyword arguments replace fields."""

    def make(files: list[dict[str, Any]], size: int, classes: int, channels: int = 3, **more: Any) -> dict[str, Any]:
        count = sum(file["rows"] for file in files)
        return {
            "fingerprint": "0123456789abcdef",
            "teacher": "lenet5@t.pt",
            "source": "selection",
            "count": count,
            "image": {"encoded": False, "size": size, "channels": channels},
            "classes": classes,
            "per_class": [count, *[0] * (classes - 1)],
            "threshold": 0.5,
            "admitted": count,
            "reasons": {"selected": count},
            "unreadable": [],
            "config": {},
            "content": {
                "teacher": {"architecture": "lenet5", "weights": "0" * 64},
                "preprocess": {"normalize": "none", "image_size": size, "channels": channels},
                "options": {"method": "threshold:gamma=0.7"},
                "seed": 0,
            },
            "files": files,
            **more,
        }

    return make


@pytest.fixture(scope="session")
def in_parts() -> Callable[..., Any]:
    """A function that makes of scores the function that reads them part by part."""

    def of(scores: Any, readable: np.ndarray, size: int) -> Callable[[], Any]:
        def parts() -> Any:
            for start in range(0, len(readable), size):
                some = slice(start, start + size)
                columns = (None if column is None else column[some] for column in vars(scores).values())
                yield type(scores)(*columns), readable[some]

        return parts

    return of


@pytest.fixture
def rng():
    return np.random.default_rng(0)
