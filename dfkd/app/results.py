"""Results of calls from Python: selections and runs as objects, and their comparison."""

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from dfkd.app.calls import computing, configured, opened, path_text
from dfkd.config.stage_table import STAGES
from dfkd.formats.run_records import finished_weights, read_request
from dfkd.formats.shards import Shards
from dfkd.models.find import OBJECT
from dfkd.models.load import load_model
from dfkd.models.load_weights import load_weights
from dfkd.models.own import OwnNetwork
from dfkd.report.collect import FinishedRun, read_run
from dfkd.system.errors import RequestError

if TYPE_CHECKING:
    import pandas as pd


class Selection:
    """A map-style data set of pairs (image, teacher's logits), also for torch's `DataLoader`.

    An image is uint8 [channels, height, width], after the pool filter. Logits are float32 [classes], for the image
    without augmentation. `folder` is the folder of the selection.

    Args:
        folder: The folder that `dfkd select` or `dfkd generate` wrote.

    Raises:
        RequestError: The folder is not a complete selection.
    """

    def __init__(self, folder: str | Path) -> None:
        with opened(verbose=False):
            self.folder = Path(path_text(folder, "folder"))
            self._opened: tuple[int, Shards] = os.getpid(), Shards(self.folder)

    @property
    def manifest(self) -> dict[str, Any]:
        """Fields of `manifest.json`: the content of the selection, and everything that decided it."""
        return dict(self._shards.manifest.table)

    @cached_property
    def scores(self) -> "pd.DataFrame | dict[str, np.ndarray]":
        """Scores of the pool, one row per image: source, prediction, confidence, entropy, distance and reason.

        A pandas table if pandas is installed, else a dictionary of arrays [images].
        """
        import pyarrow.parquet as pq

        table = pq.read_table(self.folder / "scores.parquet")
        return as_table({name: table[name].to_numpy() for name in table.column_names})

    def __len__(self) -> int:
        return len(self._shards)

    @overload
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[Tensor, Tensor]]: ...

    def __getitem__(self, index: int | slice) -> tuple[Tensor, Tensor] | list[tuple[Tensor, Tensor]]:
        """Return one image and the teacher's logits, or a list of such pairs for a slice."""
        if isinstance(index, slice):
            return self.__getitems__(range(*index.indices(len(self))))
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Return several pairs at once, as a DataLoader requests them."""
        rows = np.array([self._row(index) for index in indices], dtype=np.int64)
        images = torch.from_numpy(self._shards.pixels(rows)).permute(0, 3, 1, 2)
        logits = torch.from_numpy(self._logits[rows].astype(np.float32))
        return list(zip(images, logits, strict=True))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"<dfkd.Selection {str(self.folder)!r}: {len(self):,} images, {self._shards.manifest.classes} classes>"

    def _row(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of a selection of {len(self)} images")
        return int(index) % len(self)

    @cached_property
    def _logits(self) -> np.ndarray:
        return self._shards.column("logits")

    @property
    def _shards(self) -> Shards:
        """Shards that this process has opened. A fork by a DataLoader loses the threads that decode images."""
        process, shards = self._opened
        if process != os.getpid():
            shards = Shards(self.folder)
            self._opened = os.getpid(), shards
        return shards

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]


class Run:
    """A finished distillation. `folder` is the folder of the run.

    Args:
        folder: The folder that `dfkd distill` wrote.
        student: A module of the class that was trained, if the student was a Python object.

    Raises:
        RequestError: The folder is not a finished run, or `student` is of another class.
    """

    def __init__(self, folder: str | Path, student: nn.Module | None = None) -> None:
        self._given = student
        with opened(verbose=False):
            folder = path_text(folder, "folder")
            self.folder = Path(folder)
            read_run(folder)
            self._architecture: str = read_request(self.folder).model.architecture
            if student is not None and self._architecture.startswith(OBJECT):
                self._check_class(student)
            elif student is not None:
                raise RequestError(f"the student of run {str(folder)!r} is {self._architecture}; leave student out")

    @property
    def result(self) -> dict[str, Any]:
        """Fields of `result.json`: accuracy from 0 to 1, cost, and the training images."""
        return dict(self._read().result.table)

    @cached_property
    def metrics(self) -> "pd.DataFrame | dict[str, np.ndarray]":
        """Rows of `metrics.jsonl`, one per logged step.

        A pandas table if pandas is installed, else a dictionary of arrays [rows]. A value that a row lacks is NaN.
        """
        rows = self._read().metrics
        names = dict.fromkeys(name for row in rows for name in row)
        return as_table({name: np.array([row.get(name, np.nan) for row in rows]) for name in names})

    @cached_property
    def student(self) -> nn.Module:
        """The trained network, on the CPU, in evaluation mode.

        Raises:
            RequestError: The student was a Python object, and `open_run` was not given one.
        """
        with computing(verbose=False):
            if self._given is None:
                return load_model(str(self.folder)).module.eval()
            student = copy.deepcopy(self._given).to("cpu", torch.float32)
            load_weights(student, finished_weights(self.folder))
            return student.eval()

    @property
    def model(self) -> str | OwnNetwork:
        """The student as an input of a stage: the run's folder, or the module."""
        return str(self.folder) if self._given is None else OwnNetwork(self.student)

    @property
    def input(self) -> dict[str, Any]:
        """Preprocessing that the student expects: `normalize`, `image_size`, `crop_pct` and `interpolation`."""
        return dict(vars(read_request(self.folder).model.input))

    def _read(self) -> FinishedRun:
        with opened(verbose=False):
            return read_run(str(self.folder))

    def _check_class(self, student: nn.Module) -> None:
        name, given = self._architecture.removeprefix(OBJECT), OwnNetwork(student).name
        if given.rpartition(".")[2] != name.rpartition(".")[2]:
            raise RequestError(f"the student of run {str(self.folder)!r} was a {name}; student is a {given}")

    def __repr__(self) -> str:
        top1 = self.result["top1"]
        return f"<dfkd.Run {str(self.folder)!r}: {'not tested' if top1 is None else f'top-1 {top1:.2%}'}>"


def open_selection(folder: str | Path) -> Selection:
    """Open the folder of a selection.

    Args:
        folder: The folder that `dfkd select` or `dfkd generate` wrote.

    Returns:
        The selection as a data set.

    Raises:
        RequestError: The folder is not a complete selection.

    Example:
        >>> import dfkd
        >>> dfkd.open_selection("nothing-here")
        Traceback (most recent call last):
        dfkd.system.errors.RequestError: there is no selection in nothing-here
    """
    return Selection(folder)


def open_run(folder: str | Path, student: nn.Module | None = None) -> Run:
    """Open the folder of a finished run.

    Args:
        folder: The folder that `dfkd distill` wrote.
        student: A module of the class that was trained, if the student was a Python object. The module is copied.

    Returns:
        The run, with its student, metrics and result.

    Raises:
        RequestError: The folder is not a finished run, or `student` is of another class.
    """
    return Run(folder, student)


def compare(
    runs: Sequence[Run | str | Path] | Run | str | Path,
    out: str | Path = "report.html",
    verbose: bool = True,
    disagreements: int = 0,
) -> Path:
    """Compare runs in an HTML page, and in a CSV file beside it.

    Args:
        runs: One or several runs, or their folders. Runs of one name count as seeds of one row.
        out: The page to write. The CSV file has the same name.
        verbose: Whether the table is printed.
        disagreements: Number of images per row to show on which student and teacher differ. Above 0, both networks of a
            row run on its test images.

    Returns:
        The path of the page.

    Raises:
        RequestError: There are no runs, or a folder is not a finished run.
    """
    with opened(verbose):
        several = [runs] if isinstance(runs, (Run, str, Path)) or not isinstance(runs, Iterable) else runs
        folders = tuple(str(run.folder) if isinstance(run, Run) else path_text(run, "runs") for run in several)
        stage = STAGES["compare"]
        page: Path = stage.run(configured(stage, {"runs": folders, "out": out, "disagreements": disagreements}, {}))
        return page


def as_table(columns: dict[str, np.ndarray]) -> "pd.DataFrame | dict[str, np.ndarray]":
    """Return columns as a pandas table if pandas is installed, else as they are."""
    try:
        import pandas as pd
    except ImportError:
        return columns
    return pd.DataFrame(columns)
