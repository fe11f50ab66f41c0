"""Versions of the libraries on which a result's last bits depend."""

from functools import cache
from importlib.metadata import version

WITH_VERSION = frozenset(("dfkd", "torch", "torchvision", "timm"))
"""Packages whose code is known by their version."""


@cache
def _version(name: str) -> str:
    """Return a distribution's version. The cache saves a search through the distribution's files."""
    return version(name).partition("+")[0]


def versions(*names: str) -> dict[str, str]:
    """Return the versions of `dfkd` and of the named distributions, without build tags."""
    return {name: _version(name) for name in ("dfkd", *names)}
