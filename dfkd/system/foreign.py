"""Boundary to foreign code: its exceptions become one-line errors that name the file and line of the foreign code.

Networks, losses, methods and their modules are called within `Foreign`. Every command runs within a `Foreign`, too.
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
"""Wording of an exception of which no more is known than the command."""
_OURS = "dfkd"
_LIBRARIES = {
    *("torch", "functorch", "torchgen", "numpy", "PIL", "pyarrow", "datasets", "huggingface_hub", "fsspec", "faiss"),
    *("sklearn", "scipy", "safetensors", "rich", "onnx", "onnxscript", "onnx_ir", "jaxtyping", "beartype", "tomli_w"),
    *("sympy", "mpmath", "networkx", "triton"),
}
"""Packages that dfkd itself calls. Their frames in a traceback do not show whose code is at fault."""
_INSTALLED = {"site-packages", "dist-packages"}
_LONGEST = 300
"""Largest number of characters of an exception's text in an error message."""


class Raised(RequestError):
    """Error for an exception of foreign code, in one line."""

    def __init__(self, what: str, error: BaseException, line: str, hint: str = "") -> None:
        """Compose the message. `error` keeps the exception, `said` its type and text, `line` its file and line."""
        self.error, self.said, self.line = error, _told(error), line
        super().__init__(f"{what} {self.said}{line}{hint}")


class Foreign:
    """Context manager around foreign code: exceptions become `WHAT TYPE: MESSAGE (FILE, line N)HINT`.

    An exception is foreign if its traceback has a frame of foreign code, or if the block calls a foreign `target`.
    Other exceptions are defects of dfkd and pass unchanged. RequestError, interrupts, exhausted memory, a full disk and
    a closed pipe pass unchanged, too.
    """

    def __init__(self, what: str, target: object = None, *, always: bool = False, hint: str = "") -> None:
        """Set the message. `always` attributes every exception in the block to `target`, even a target of dfkd."""
        self._what, self._target, self._always, self._hint = what, target, always, hint

    def __enter__(self) -> None:
        """Change nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raise Raised in place of a foreign exception."""
        if error is None or _stays(error):
            return
        own = _file(self._target) if self._always else None
        line = _line(error, trace.tb_next if trace else None, own)  # skip the frame of the with block
        if line is None and not self._always and not is_theirs(self._target):
            return
        raise Raised(self._what, error, line or _defined(self._target), self._hint) from error


def line_of(error: BaseException) -> str:
    """Return the text that names the file and line of foreign code that raised an exception, or an empty text."""
    return _line(error, error.__traceback__, None) or ""


def _stays(error: BaseException) -> bool:
    """Return whether an exception has the same meaning in any code and passes unchanged."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    # torch's OutOfMemoryError is compared by name, because not every command imports torch
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    ends = isinstance(error, (RequestError, KeyboardInterrupt, GeneratorExit, BrokenPipeError))
    return full or memory or ends


def _told(error: BaseException) -> str:
    """Return the type and the message of an exception, in one line of bounded length."""
    name = type(error).__name__
    if isinstance(error, SystemExit):
        return f"{name}: it ends the program"
    try:
        said = str(getattr(error, "msg", None) or error)
    except Exception:  # the exception's own __str__ fails
        return name
    text = " ".join(said.split())
    if len(text) > _LONGEST:  # torch's messages can fill pages; the first line names the problem
        text = next(line.strip() for line in said.splitlines() if line.strip())
        text = text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
    return f"{name}: {text}" if text else name


def _line(error: BaseException, trace: TracebackType | None, own: str | None) -> str | None:
    """Return the last line of foreign code in a traceback, or None. Installed packages count if there is no other.

    `own` is a further file whose lines count as foreign.
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
    """Return whether a called object is defined outside dfkd."""
    return target is not None and _package(target) != _OURS


def _package(target: object) -> str:
    return str(getattr(_definition(target), "__module__", "")).partition(".")[0]


def _definition(target: object) -> object:
    """Return the function or class behind a callable."""
    if isinstance(target, functools.partial):
        return _definition(target.func)
    return target if isinstance(target, (type, types.FunctionType, types.MethodType)) else type(target)


def _defined(target: object) -> str:
    """Return where a foreign callable's code begins, or an empty text."""
    found: Any = _definition(target)
    code = getattr(getattr(found, "forward", found) if isinstance(found, type) else found, "__code__", None)
    if target is None or not _is_foreign(_package(target)):
        return ""
    try:
        return _at(code.co_filename, code.co_firstlineno) if code else _at(*_class_line(found))
    except (OSError, TypeError):  # built in, or the source is not available
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
