"""The versions of the libraries that decide a result's last bits."""

from importlib.metadata import version


def versions(*names: str) -> dict[str, str]:
    """Versions of `dfkd` and of the named distributions, without build tags."""
    return {name: version(name).partition("+")[0] for name in ("dfkd", *names)}
