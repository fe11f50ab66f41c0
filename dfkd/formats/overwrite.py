"""Protection of inputs and of files of runs and selections from being overwritten by an output."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from dfkd.data.locate import paths_of
from dfkd.formats.manifest import BESIDE, MANIFEST
from dfkd.formats.run_records import CHECKPOINT, CONFIG, KEPT, METRICS, RESULT, STATE, WEIGHTS
from dfkd.system.errors import RequestError
from dfkd.system.files import user_path

_OF_RUN = (CONFIG, METRICS, WEIGHTS, RESULT)
_OF_SELECTION = (MANIFEST, *BESIDE)


def check_output(text: str, flag: str, inputs: Iterable[str | None]) -> None:
    """Raise RequestError if a flag names a file that is an input (DATA, MODEL, FILE) or part of a run or selection."""
    for path in {user_path(text).absolute(), user_path(text).resolve()}:
        why = _kept(path) or _input(path, inputs)
        if why:
            raise RequestError(f"{flag} {text} would replace {why}; give another file")


def _kept(path: Path) -> str | None:
    """Return in words which run or selection a file belongs to, or None.

    A file that an unfinished run is yet to write belongs to the run, too.
    """
    folder, name = path.parent, path.name
    if (folder / CONFIG).exists() and ((folder / METRICS).exists() or (folder / RESULT).exists()) and name in _OF_RUN:
        return f"a file of the run {folder.name}"
    of_run = folder.name == KEPT and (folder.parent / CONFIG).exists()
    if of_run or (folder.name.startswith(CHECKPOINT) and (folder / STATE).exists()):
        return f"a file of the run {folder.parent.name}"
    if (folder / MANIFEST).exists() and (name in _OF_SELECTION or path.suffix == ".arrow"):
        return f"a file of the selection {folder.name}"
    return None


def _input(path: Path, inputs: Iterable[str | None]) -> str | None:
    """Return in words which input a path is, or which input folder contains the path, or None.

    Reports are allowed in an input folder of images.
    """
    if not path.exists():
        return None
    for text in inputs:
        for given in _paths(text or ""):
            inside = given.is_dir() and path.resolve().is_relative_to(given.resolve())
            report = path.suffix in (".json", ".html", ".csv") and path.name not in _OF_SELECTION
            if os.path.samefile(path, given) or (inside and not report and not (given / CONFIG).exists()):
                return f"the input {text}"
    return None


def _paths(text: str) -> Iterator[Path]:
    weights = text.rpartition("@")[2]  # a MODEL has its weights after the @, and the key of a state dict after a #
    for part in {text, weights, weights.rpartition("#")[0]} - {""}:
        yield from paths_of(part)
