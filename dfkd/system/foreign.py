"""Code of others: whatever it raises becomes one line with the file and line of its own code.

A network, a loss, a method and the module of each are called within `Foreign`, and every command runs within one.
"""

import errno
import functools
import inspect
import sys
import types
from pathlib import Path
from types import TracebackType
from typing import Any

from dfkd.system.errors import RequestError

COMMAND = "code that is not of dfkd raised"
"""What a whole command says that nothing more is known of."""
_OURS = "dfkd"
_LIBRARIES = {
    *("torch", "functorch", "torchgen", "numpy", "PIL", "pyarrow", "datasets", "huggingface_hub", "fsspec", "faiss"),
    *("sklearn", "scipy", "safetensors", "rich", "onnx", "onnxscript", "onnx_ir", "jaxtyping", "beartype", "tomli_w"),
    *("sympy", "mpmath", "networkx", "triton"),
}
"""Packages that dfkd calls itself: their frames do not say whose code is at fault."""
_INSTALLED = {"site-packages", "dist-packages"}
_LONGEST = 300
"""Characters of an error's own text."""


class Raised(RequestError):
    """What code of others raised, in one line."""

    def __init__(self, what: str, error: BaseException, line: str, hint: str = "") -> None:
        """`error` is the exception itself, `said` its kind and text."""
        self.error, self.said, self.line = error, _told(error), line
        super().__init__(f"{what} {self.said}{line}{hint}")


class Foreign:
    """Within it code of others runs: what it raises becomes `WHAT TYPE: MESSAGE (FILE, line N)HINT`.

    An exception is theirs where its traceback has a frame of theirs, or `target` is theirs, which the block calls.
    Another one is a defect of ours and stays as it is. So do requests that are wrong, interrupts, memory that runs out,
    a full disk and a closed pipe.
    """

    def __init__(self, what: str, target: object = None, *, always: bool = False, hint: str = "") -> None:
        """`always`: the block calls `target` and nothing else, so that it is at fault, also where it is one of ours."""
        self._what, self._target, self._always, self._hint = what, target, always, hint

    def __enter__(self) -> None:
        """Nothing is changed."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises: Raised."""
        if error is None or _stays(error):
            return
        own = _file(self._target) if self._always else None
        line = _line(error, trace.tb_next if trace else None, own)  # without the frame of the block itself
        if line is None and not self._always and not is_theirs(self._target):
            return
        raise Raised(self._what, error, line or _defined(self._target), self._hint) from error


def line_of(error: BaseException) -> str:
    """Where code of others raised it; empty where none did."""
    return _line(error, error.__traceback__, None) or ""


def _stays(error: BaseException) -> bool:
    """Whether it is the same whoever raises it."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    # torch's is named and not imported: not every command needs torch
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    ends = isinstance(error, (RequestError, KeyboardInterrupt, GeneratorExit, BrokenPipeError))
    return full or memory or ends


def _told(error: BaseException) -> str:
    """The kind of an exception and what it says, in one line of bounded length."""
    name = type(error).__name__
    if isinstance(error, SystemExit):
        return f"{name}: it ends the program"
    try:
        said = str(getattr(error, "msg", None) or error)
    except Exception:  # its own __str__ fails
        return name
    text = " ".join(said.split())
    if len(text) > _LONGEST:  # torch explains over pages; the first line says it
        text = next(line.strip() for line in said.splitlines() if line.strip())
        text = text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
    return f"{name}: {text}" if text else name


def _line(error: BaseException, trace: TracebackType | None, own: str | None) -> str | None:
    """The last line of theirs that an exception has passed; of an installed package where there is no other.

    `own` is a file that counts as theirs, too.
    """
    if isinstance(error, SyntaxError) and error.filename and not error.filename.startswith("<"):
        return _at(error.filename, error.lineno)
    written = installed = None
    while trace is not None:
        file, package = trace.tb_frame.f_code.co_filename, str(trace.tb_frame.f_globals.get("__name__") or "")
        if _is_foreign(package.partition(".")[0]) or file == own:
            if _INSTALLED.isdisjoint(Path(file).parts):
                written = _at(file, trace.tb_lineno)
            else:
                installed = _at(file, trace.tb_lineno)
        trace = trace.tb_next
    return written or installed


def _is_foreign(package: str) -> bool:
    return bool(package) and package != _OURS and package not in _LIBRARIES and package not in sys.stdlib_module_names


def is_theirs(target: object) -> bool:
    """Whether what is called is not of this package."""
    return target is not None and _package(target) != _OURS


def _package(target: object) -> str:
    return str(getattr(_definition(target), "__module__", "")).partition(".")[0]


def _definition(target: object) -> object:
    """The function or class behind what is called."""
    if isinstance(target, functools.partial):
        return _definition(target.func)
    return target if isinstance(target, (type, types.FunctionType, types.MethodType)) else type(target)


def _defined(target: object) -> str:
    """Where the code of what is called begins, if that is a file of theirs."""
    found: Any = _definition(target)
    code = getattr(getattr(found, "forward", found) if isinstance(found, type) else found, "__code__", None)
    if target is None or not _is_foreign(_package(target)):
        return ""
    try:
        return _at(code.co_filename, code.co_firstlineno) if code else _at(*_class_line(found))
    except (OSError, TypeError):  # built in, or without its source
        return ""


def _file(target: object) -> str | None:
    try:
        return None if target is None else inspect.getfile(_definition(target))  # type: ignore[arg-type]
    except (OSError, TypeError):  # built in
        return None


def _class_line(found: Any) -> tuple[str, int]:
    return inspect.getfile(found), inspect.getsourcelines(found)[1]


def _at(file: str, line: int | None) -> str:
    path = Path(file)
    name = path.name if path.name != "__init__.py" else f"{path.parent.name}/{path.name}"
    return f" ({name}, line {line})"
