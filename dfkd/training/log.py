"""`--log`: metrics, pictures and the result of a training, for programs that show them during the training."""

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dfkd.formats.run_folder import Progress
from dfkd.formats.run_records import LOGS
from dfkd.system import ranks
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.training.loggers.base import PICTURES, Logger, Training

LOGGERS = {"tensorboard": "TensorBoard", "wandb": "WeightsAndBiases", "mlflow": "MLflow", "pictures": "Pictures"}
"""Modules of `dfkd.training.loggers`, which `--log` names, and their classes."""
MEASURES = frozenset(
    {
        *("agreement", "student_entropy", "teacher_entropy", "learning_rate", "images_per_second"),
        *("generated_classes", "generated_distance", "statistics_distance"),
    }
)
"""Names of metrics that are not losses."""
SHOWN = 16
"""Images per picture."""

Pictures = Callable[[], Mapping[str, UInt8[np.ndarray, "images height width channels"]]]
"""Function that returns the images that a training has just seen or made, by name."""


def check_loggers(names: Sequence[str]) -> None:
    """Raise RequestError for a logger whose library is not installed."""
    for name in names:
        needs = _logger(name).needs
        if find_spec(needs) is None:
            raise RequestError(f"--log {name} needs {needs}: pip install '.[{name}]' in the checkout of dfkd")


class Log:
    """The loggers of a training. They are opened at the first row, so a process that logs nothing opens none.

    A logger that fails is removed with a warning, and the training continues.
    """

    def __init__(self, names: Sequence[str], training: Training, steps: int, every: int, pictures: Pictures) -> None:
        self._names, self._training, self._pictures = dict.fromkeys(names), training, pictures
        self._steps, self._every = steps, every
        self._open: dict[str, Logger] | None = None

    def row(self, row: Mapping[str, Any]) -> None:
        """Log a row of metrics, with a picture several times per training."""
        step = int(row["step"])
        scalars = {_grouped(name): float(value) for name, value in row.items() if name != "step"}
        self._tell(step, lambda logger: logger.scalars(step, scalars))
        if self._is_pictured(step):
            for name, images in self._pictures().items():
                self._picture(step, name, grid(images[:SHOWN]))

    def _picture(self, step: int, name: str, picture: UInt8[np.ndarray, "height width channels"]) -> None:
        self._tell(step, lambda logger: logger.image(step, name, picture))

    def result(self, table: Mapping[str, Any]) -> None:
        """Log the final result."""
        self._tell(self._steps, lambda logger: logger.result(self._steps, table))

    def close(self) -> None:
        """Write what is not written yet."""
        self._tell(None, lambda logger: logger.close())

    def _is_pictured(self, step: int) -> bool:
        """Return whether a picture is due. The step alone decides, so that a resumed training has the same pictures."""
        now, before = (at * PICTURES // self._steps for at in (step, step - self._every))
        return now > before or step <= self._every

    def _tell(self, step: int | None, what: Callable[[Logger], None]) -> None:
        if self._open is None:
            if step is None:
                return
            self._open = {}
            for name in self._names:
                with self._guarded(name):
                    self._open[name] = _logger(name)(self._training, step)
        for name, logger in [*self._open.items()]:
            with self._guarded(name):
                what(logger)

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Catch the errors of a logger, such as an unreachable server or a full disk, and remove the logger."""
        try:
            yield
        except Exception as error:
            reason = str(error).partition("\n")[0]
            say(f"warning: --log {name} fails and is left out ({type(error).__name__}: {reason})")
            if self._open is not None:
                self._open.pop(name, None)


@contextlib.contextmanager
def logged(
    names: Sequence[str],
    record: Progress,
    shown: Path,
    options: Mapping[str, Any],
    pace: tuple[int, int],
    pictures: Pictures,
) -> Iterator[Log]:
    """Yield a log of the rows that are recorded while the block runs. Only rank 0 logs.

    `shown` is the folder of the result. `pace` is the number of steps, and the number of steps between rows.
    """
    names = names if ranks.first() else ()
    training = Training(record.folder / LOGS, shown.name, options)
    log = Log(names, training, *pace, pictures)
    record.follower = log.row if names else None
    try:
        yield log
    finally:
        record.follower = None
        log.close()


def grid(
    images: UInt8[np.ndarray, "images height width channels"],
) -> UInt8[np.ndarray, "grid_height grid_width channels"]:
    """Arrange images in a grid, as nearly square as possible. Unused cells are black."""
    count, height, width, channels = images.shape
    across = math.ceil(math.sqrt(count))
    down = -(-count // across)
    sheet = np.zeros((across * down, height, width, channels), np.uint8)
    sheet[:count] = images
    rows = sheet.reshape(down, across, height, width, channels).swapaxes(1, 2)
    return rows.reshape(down * height, across * width, channels)


def _grouped(name: str) -> str:
    """Return the name of a metric, with losses in one group."""
    if name == "loss":
        return "loss/total"
    return name if name.removeprefix("source.") in MEASURES else f"loss/{name}"


def _logger(name: str) -> type[Logger]:
    found: type[Logger] = getattr(importlib.import_module(f"dfkd.training.loggers.{name}"), LOGGERS[name])
    return found
