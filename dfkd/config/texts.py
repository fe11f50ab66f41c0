"""Conversion of an option's text on the command line to a value of the option's type."""

import re
import types
import typing
from typing import Any

from dfkd.system.names import WORDS


def flag(name: str) -> str:
    """Return an option's flag on the command line."""
    return "--" + name.replace("_", "-")


def kind_of(hint: Any) -> tuple[Any, bool]:
    """Return the type of one value of an option, and whether the option takes several values."""
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return kinds[0], any(typing.get_origin(kind) is tuple for kind in kinds)
    return hint, False


_WORD = re.compile(r"(MODEL|DATA|NAME|FILE|K/N|Folder)\b")
_READ = {"model": "MODEL", "data": "DATA", "selection": "FOLDER"}


def metavar(kind: Any, reads: str | None, help: str) -> str:
    """Return the placeholder for a value in `--help`: for text the first word of its help, such as FILE."""
    if typing.get_args(kind):
        return f"{{{','.join(typing.get_args(kind))}}}"
    if kind is not str:
        return str(kind.__name__).upper()
    word = _WORD.match(help)
    return _READ.get(reads or "") or (word[1].upper() if word else "TEXT")


def value(name: str, text: str, hint: Any) -> Any:
    """Return one text of an option converted to its type. Raises: ValueError, which names the option and the text."""
    kind, _ = kind_of(hint)
    if text == "None" and type(None) in typing.get_args(hint):
        return None
    allowed = typing.get_args(kind)
    if allowed and text not in allowed:
        raise ValueError(f"{flag(name)}: invalid choice {text!r}; it is one of {', '.join(allowed)}")
    if kind not in (int, float):
        return text
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{flag(name)}: {text!r} is not {WORDS[kind]}") from None
