"""Logger for TensorBoard: event files in the folder `tensorboard` of the training's logs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dfkd.training.loggers.base import Logger, Training, as_text, numbers


class TensorBoard(Logger):
    """Scalars, images and, as Markdown tables, the options and the result."""

    needs = "tensorboard"

    def __init__(self, training: Training, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = training.folder / "tensorboard"
        begun = folder.exists()
        # rows of an earlier command from this step on are purged: they are logged again
        self._writer = SummaryWriter(str(folder), purge_step=step if begun else None)
        if not begun:
            self._writer.add_text("options", _markdown(training.options))

    def scalars(self, step: int, row: Mapping[str, float]) -> None:
        """Log each metric under its name."""
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "height width channels"]) -> None:
        """Log the picture under `images/`."""
        self._writer.add_image(f"images/{name}", pixels, step, dataformats="HWC")

    def result(self, step: int, table: Mapping[str, Any]) -> None:
        """Log the result as text, and its numbers as scalars."""
        self._writer.add_text("result", _markdown(table), step)
        self.scalars(step, {f"result/{name}": value for name, value in numbers(table).items()})

    def close(self) -> None:
        """Write the last events."""
        self._writer.close()


def _markdown(table: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {as_text(value).replace('|', chr(92) + '|')} |" for name, value in table.items()]
    return "\n".join(["| name | value |", "| --- | --- |", *rows])
