"""Text of a request as it may be stored, and back: what tells of the machine or its user becomes `~` and `$NAME`.

A text that was expanded remembers which path stands for which `$NAME`. While a stage runs, `portable` knows what the
texts of its own request remember, and nothing of another request: two calls in one process do not see each other.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

_BEFORE = r"(?<![^@=,:\s])"
"""Where a path may begin within a MODEL, a DATA or a list of them."""
_spelling: ContextVar[Mapping[str, str]] = ContextVar("spelling")
"""For the request that runs: the paths that stand for `$NAME`, each with that `$NAME`."""


class Expanded(str):
    """A text in which `$NAME` was filled in, with the path that stands for each `$NAME`."""

    names: Mapping[str, str]

    def __new__(cls, text: str, names: Mapping[str, str] | None = None) -> "Expanded":
        """`names` has `$NAME` by the path that stands for it; a copy gets it with the rest of its state."""
        made = super().__new__(cls, text)
        made.names = dict(names or {})
        return made


def names_of(value: Any) -> dict[str, str]:
    """What the texts in `value` (also within lists and tables) remember of their `$NAME`, by the path."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return {path: name for item in value for path, name in names_of(item).items()}
    return dict(value.names) if isinstance(value, Expanded) else {}


@contextmanager
def spelled_as(request: Mapping[str, Any]) -> Iterator[None]:
    """While the block runs, `portable` writes `$NAME` wherever a text of the request said so."""
    token = _spelling.set(names_of(request))
    try:
        yield
    finally:
        _spelling.reset(token)


def portable(value: Any, spelling: Mapping[str, str] | None = None) -> Any:
    """A request's value as it may be stored: it tells nothing of the machine or its user that the request did not.

    In text (also within lists and tables) the user's own folder is written `~`, a folder called as the user is `$USER`,
    and a path for which a preset or a pipeline said `$NAME` is `$NAME` again. A shell, and `expand`, fill them in.
    `spelling` has further `$NAME` by their path.
    """
    if isinstance(value, Mapping):
        return {key: portable(item, spelling) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(item, spelling) for item in value]
    if not isinstance(value, str):
        return value
    if "/" not in value:  # no path is in it
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
    """Half a surrogate (of a file's name that is no UTF-8) can be stored nowhere."""
    return text.encode("utf-8", "backslashreplace").decode()


def expand(value: Any) -> Any:
    """Text (or texts) with `~` and `$NAME` filled in, as a shell would; other values as they are."""
    if isinstance(value, tuple):
        return tuple(expand(item) for item in value)
    if not isinstance(value, str):
        return value
    names = names_of(value)  # of a text that was expanded before
    for name in re.findall(r"\$(\w+|\{\w+\})", value):
        path = os.environ.get(name.strip("{}"), "")
        if path.startswith("/") and path.rstrip("/"):
            names[path.rstrip("/")] = f"${name}"
    value = re.sub(rf"{_BEFORE}~(?=/)", os.path.expanduser("~").replace("\\", r"\\"), os.path.expandvars(value))
    return Expanded(os.path.expanduser(value), names) if names else os.path.expanduser(value)


def below(folder: str, *parts: str) -> str:
    """The path of something in a folder; it remembers what the folder's text does."""
    path, names = str(Path(folder, *parts)), names_of(folder)
    return Expanded(path, names) if names else path
