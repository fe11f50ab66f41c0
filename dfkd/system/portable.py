"""Conversion of a request's texts to and from a form that reveals neither the machine nor its user.

`portable` replaces paths by `~` and `$NAME`; `expand` fills them in. An expanded text remembers which path stands for
which `$NAME`. While a stage runs, `portable` uses the spellings of the stage's own request only. Several calls in one
process therefore do not affect each other.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

_BEFORE = r"(?<![^@=,:\s])"
"""Regular expression for the place before a path in a MODEL, a DATA or a list of these."""
_spelling: ContextVar[Mapping[str, str]] = ContextVar("spelling")
"""Paths of the running request that were written as `$NAME`, each with its `$NAME`."""


class Expanded(str):
    """Text in which `$NAME` was filled in; `names` holds the `$NAME` of each filled-in path."""

    names: Mapping[str, str]

    def __new__(cls, text: str, names: Mapping[str, str] | None = None) -> "Expanded":
        """Make the text. `names` maps paths to `$NAME`; copying and pickling restore `names` as part of the state."""
        made = super().__new__(cls, text)
        made.names = dict(names or {})
        return made


def names_of(value: Any) -> dict[str, str]:
    """Return the `$NAME` by path of all expanded texts in `value`, including those in lists and tables."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return {path: name for item in value for path, name in names_of(item).items()}
    return dict(value.names) if isinstance(value, Expanded) else {}


@contextmanager
def spelled_as(request: Mapping[str, Any]) -> Iterator[None]:
    """Have `portable` restore the `$NAME` spellings of a request's texts while the block runs."""
    token = _spelling.set(names_of(request))
    try:
        yield
    finally:
        _spelling.reset(token)


def portable(value: Any, spelling: Mapping[str, str] | None = None) -> Any:
    """Return a request's value in the form for storage, without details of the machine or its user.

    Three replacements are made in texts, also within lists and tables. The user's home folder becomes `~`. A folder
    with the user's name becomes `$USER` or `$LOGNAME`. A path that a preset or a pipeline wrote as `$NAME` becomes
    `$NAME` again. A shell and `expand` reverse the replacements. `spelling` adds further `$NAME` by path.
    """
    if isinstance(value, Mapping):
        return {key: portable(item, spelling) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(item, spelling) for item in value]
    if not isinstance(value, str):
        return value
    if "/" not in value:  # no path
        return _storable(str(value))
    home = os.path.expanduser("~")
    names = {**_spelling.get({}), **(spelling or {}), **names_of(value)}
    names |= {home: "~"} if home not in ("~", "/", "") else {}
    value = str(value)
    for path in sorted(names, key=len, reverse=True):
        value = re.sub(rf"{_BEFORE}{re.escape(path)}(?=[/,:\s]|$)", names[path], value)
    for variable in ("USER", "LOGNAME"):
        if user := os.environ.get(variable):
            value = re.sub(rf"(?<=/){re.escape(user)}(?=[/,:\s]|$)", f"${variable}", value)
    return _storable(value)


def _storable(text: str) -> str:
    """Return text with escapes for lone surrogates, which stand for bytes of file names that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def expand(value: Any) -> Any:
    """Return a text, or a tuple of texts, with `~` and `$NAME` filled in. Return other values unchanged."""
    if isinstance(value, tuple):
        return tuple(expand(item) for item in value)
    if not isinstance(value, str):
        return value
    names = names_of(value)  # of an earlier expansion
    for name in re.findall(r"\$(\w+|\{\w+\})", value):
        path = os.environ.get(name.strip("{}"), "")
        if path.startswith("/") and path.rstrip("/"):
            names[path.rstrip("/")] = f"${name}"
    value = re.sub(rf"{_BEFORE}~(?=/)", os.path.expanduser("~").replace("\\", r"\\"), os.path.expandvars(value))
    return Expanded(os.path.expanduser(value), names) if names else os.path.expanduser(value)


def below(folder: str, *parts: str) -> str:
    """Return the path of an entry in a folder, with the `$NAME` spellings of the folder's text."""
    path, names = str(Path(folder, *parts)), names_of(folder)
    return Expanded(path, names) if names else path
