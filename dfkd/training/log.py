"""`--log`: the rows of metrics, pictures and the result of a training, for programs that show them while it runs."""

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dfkd.formats.run_folder import LOGS, Progress
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.training.loggers.base import Logger, Training

LOGGERS = {"tensorboard": "TensorBoard", "wandb": "WeightsAndBiases", "mlflow": "MLflow", "pictures": "Pictures"}
"""What `--log` names: a module of `dfkd.training.loggers`, and its class."""
MEASURES = frozenset(
    {
        *("agreement", "student_entropy", "teacher_entropy", "learning_rate", "images_per_second"),
        *("generated_classes", "generated_distance", "statistics_distance"),
    }
)
"""What is no loss in a row of metrics."""
PICTURES = 20
"""Pictures of a whole training."""
SHOWN = 16
"""Images of a picture."""

Pictures = Callable[[], Mapping[str, UInt8[np.ndarray, "images height width channels"]]]
"""The images that a training has just seen or made, by what they are."""


def check_loggers(names: Sequence[str]) -> None:
    """Refuse a logger whose library is not installed. Raises: RequestError."""
    for name in names:
        needs = _logger(name).needs
        if find_spec(needs) is None:
            raise RequestError(f"--log {name} needs {needs}: pip install '.[{name}]' in the checkout of dfkd")


class Log:
    """What a training tells its loggers. They are opened at the first row: a process that logs nothing opens none.

    A logger that fails is told and left out: the training goes on.
    """

    def __init__(self, names: Sequence[str], training: Training, steps: int, every: int, pictures: Pictures) -> None:
        self._names, self._training, self._pictures = dict.fromkeys(names), training, pictures
        self._steps, self._every = steps, every
        self._open: dict[str, Logger] | None = None

    def row(self, row: Mapping[str, Any]) -> None:
        """A row of metrics, with a picture some times in a training."""
        step = int(row["step"])
        scalars = {_grouped(name): float(value) for name, value in row.items() if name != "step"}
        self._tell(step, lambda logger: logger.scalars(step, scalars))
        if self._is_pictured(step):
            for name, images in self._pictures().items():
                self._picture(step, name, grid(images[:SHOWN]))

    def _picture(self, step: int, name: str, picture: UInt8[np.ndarray, "height width channels"]) -> None:
        self._tell(step, lambda logger: logger.image(step, name, picture))

    def result(self, table: Mapping[str, Any]) -> None:
        """The last table."""
        self._tell(self._steps, lambda logger: logger.result(self._steps, table))

    def close(self) -> None:
        """Write what is not written yet."""
        self._tell(None, lambda logger: logger.close())

    def _is_pictured(self, step: int) -> bool:
        """Whether a picture is due: decided by the step alone, so that a resumed training has the same ones."""
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
        """A server that is away, or a disk that is full: the training matters more."""
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
    """Log the rows that are recorded while the block runs.

    `shown` is the folder of the result, `pace` the number of steps and that from row to row.
    """
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
    """Images side by side, in rows of equal length as nearly square as can be; what is left over is black."""
    count, height, width, channels = images.shape
    across = math.ceil(math.sqrt(count))
    down = -(-count // across)
    sheet = np.zeros((across * down, height, width, channels), np.uint8)
    sheet[:count] = images
    rows = sheet.reshape(down, across, height, width, channels).swapaxes(1, 2)
    return rows.reshape(down * height, across * width, channels)


def _grouped(name: str) -> str:
    """A metric's name: losses stand together."""
    if name == "loss":
        return "loss/total"
    return name if name.removeprefix("source.") in MEASURES else f"loss/{name}"


def _logger(name: str) -> type[Logger]:
    found: type[Logger] = getattr(importlib.import_module(f"dfkd.training.loggers.{name}"), LOGGERS[name])
    return found
