"""dfkd: distil a small image classifier from a trained one when its training data cannot be had.

In Python: a `Teacher` selects, generates and distills; `open_selection`, `open_run` and `compare` read what it made.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfkd.app.results import Run, Selection, compare, open_run, open_selection
    from dfkd.app.teacher import Teacher
    from dfkd.distill import alone as losses
    from dfkd.system.errors import RequestError

__version__ = "0.2.0"
__all__ = ["RequestError", "Run", "Selection", "Teacher", "compare", "losses", "open_run", "open_selection"]
_HOMES = {
    "RequestError": "dfkd.system.errors",
    "Teacher": "dfkd.app.teacher",
    **dict.fromkeys(("Run", "Selection", "compare", "open_run", "open_selection"), "dfkd.app.results"),
}
"""Where each name is defined. It is imported on its first use: torch alone takes seconds."""


def __getattr__(name: str) -> Any:
    if name == "losses":
        return importlib.import_module("dfkd.distill.alone")
    if name not in _HOMES:
        raise AttributeError(f"module 'dfkd' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
