"""The one way to say that a request is wrong: the command line prints it as one line and exits with status 2."""

import difflib
from collections.abc import Iterable

from dfkd.system.text import visible


class RequestError(ValueError):
    """A request that cannot be carried out, as a `ValueError`.

    The message is one line. It names the value, what is allowed and a hint.

    Args:
        message: The text. Line breaks become spaces.

    Example:
        >>> str(RequestError("count=0 is not above 0"))
        'count=0 is not above 0'
    """

    def __init__(self, message: str) -> None:
        super().__init__(visible(" ".join(message.split())))


def nearest(name: str, known: Iterable[str], show: int = 12) -> str:
    """The tail of a "there is no such name" message: `; did you mean 'x'?`, or the known names where none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    more = f" and {len(names) - show} more" if len(names) > show else ""
    return f"; there are {', '.join(names[:show])}{more}" if names else ""
