"""dfkd: distil a small image classifier from a trained one whose training data is not available.

In Python, a `Teacher` selects, generates and distills. `open_selection`, `open_run` and `compare` read the results.
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
"""Module that defines each public name. A name is imported on first use, because importing torch takes seconds."""


def __getattr__(name: str) -> Any:
    if name == "losses":
        return importlib.import_module("dfkd.distill.alone")
    if name not in _HOMES:
        raise AttributeError(f"module 'dfkd' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
