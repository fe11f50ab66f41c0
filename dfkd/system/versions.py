"""The versions of the libraries that decide a result's last bits."""

from functools import cache
from importlib.metadata import version

WITH_VERSION = frozenset(("dfkd", "torch", "torchvision", "timm"))
"""Packages whose code is known by their version."""


@cache
def _version(name: str) -> str:
    """Read once: the files of a distribution are searched for it."""
    return version(name).partition("+")[0]


def versions(*names: str) -> dict[str, str]:
    """Versions of `dfkd` and of the named distributions, without build tags."""
    return {name: _version(name) for name in ("dfkd", *names)}
