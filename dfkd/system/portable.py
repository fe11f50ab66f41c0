"""Text of a request as it may be stored, and back: what tells of the machine or its user becomes `~` and `$NAME`."""

import os
import re
from collections.abc import Mapping
from typing import Any

_filled: dict[str, str] = {}
"""Paths that `expand` put in for `$NAME`, so that `portable` can write `$NAME` again."""
_BEFORE = r"(?<![^@=,:\s])"
"""Where a path may begin within a MODEL, a DATA or a list of them."""


def forget() -> None:
    """Forget which `$NAME` was filled in: what a command stores depends on that command alone."""
    _filled.clear()


def portable(value: Any) -> Any:
    """A request's value as it may be stored: it tells nothing of the machine or its user that the request did not.

    In text (also within lists and tables) the user's own folder is written `~`, a folder called as the user is `$USER`,
    and a path for which a preset or a pipeline said `$NAME` is `$NAME` again. A shell, and `expand`, fill them in.
    """
    if isinstance(value, Mapping):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(item) for item in value]
    if not isinstance(value, str):
        return value
    home = os.path.expanduser("~")
    names = {**_filled, **({home: "~"} if home not in ("~", "/", "") else {})}
    for path in sorted(names, key=len, reverse=True):
        value = re.sub(rf"{_BEFORE}{re.escape(path)}(?=[/,:\s]|$)", names[path], value)
    for variable in ("USER", "LOGNAME"):
        if user := os.environ.get(variable):
            value = re.sub(rf"(?<=/){re.escape(user)}(?=[/,:\s]|$)", f"${variable}", value)
    # half a surrogate (of a file's name that is no UTF-8) can be stored nowhere
    return value.encode("utf-8", "backslashreplace").decode()


def expand(value: Any) -> Any:
    """Text (or texts) with `~` and `$NAME` filled in, as a shell would; other values as they are."""
    if isinstance(value, tuple):
        return tuple(expand(item) for item in value)
    if not isinstance(value, str):
        return value
    for name in re.findall(r"\$(\w+|\{\w+\})", value):
        path = os.environ.get(name.strip("{}"), "")
        if path.startswith("/") and path.rstrip("/"):
            _filled[path.rstrip("/")] = f"${name}"
    value = re.sub(rf"{_BEFORE}~(?=/)", os.path.expanduser("~").replace("\\", r"\\"), os.path.expandvars(value))
    return os.path.expanduser(value)
