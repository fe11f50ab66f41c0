"""The exception for a wrong request. The command line prints its message as one line and exits with status 2."""

import difflib
from collections.abc import Iterable

from dfkd.system.text import visible


class RequestError(ValueError):
    """Exception for a request that cannot be carried out, a `ValueError`.

    The message is one line. It names the value, what is allowed and a hint.

    Args:
        message: The text. Line breaks become spaces.

    Example:
        >>> str(RequestError("count=0 is not above 0"))
        'count=0 is not above 0'
    """

    def __init__(self, message: str) -> None:
        super().__init__(visible(" ".join(message.split())))


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def reason(error: Exception) -> str:
    """Return why a file cannot be read: without the number and the path that an `OSError` adds."""
    return str(getattr(error, "strerror", None) or error)


def nearest(name: str, known: Iterable[str], show: int = 12) -> str:
    """Return the end of an error message about an unknown name.

    The end is `; did you mean 'x'?`, or a list of at most `show` known names if none is similar.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    more = f" and {len(names) - show} more" if len(names) > show else ""
    verb = "is" if len(names) == 1 else "are"
    return f"; there {verb} {', '.join(names[:show])}{more}" if names else ""
