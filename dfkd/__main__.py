"""`python -m dfkd` is `dfkd`."""

from dfkd.app.cli import entry

if __name__ == "__main__":
    entry()
