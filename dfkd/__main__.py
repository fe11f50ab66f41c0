"""`python -m dfkd` is `dfkd`."""

from dfkd.cli import entry

if __name__ == "__main__":
    entry()
