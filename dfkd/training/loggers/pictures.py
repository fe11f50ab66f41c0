"""Logger of pictures as PNG files in the training's folder. `dfkd inspect` shows those of a generator."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dfkd.data.images.decode import encode_png
from dfkd.system.files import make_folder, replacing
from dfkd.training.loggers.base import Logger, Training

FOLDER = "pictures"


class Pictures(Logger):
    """A file `STEP-NAME.png` for each picture."""

    needs = "PIL"

    def __init__(self, training: Training, step: int) -> None:
        self._folder = training.folder / FOLDER
        make_folder(self._folder)
        for file in self._folder.glob("*.png"):  # pictures of steps that a resumed training repeats
            number = file.name.partition("-")[0]
            if number.isdecimal() and int(number) >= step:
                file.unlink()

    def scalars(self, step: int, row: Mapping[str, float]) -> None:
        """Do nothing, because metrics.jsonl has the metrics."""

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "height width channels"]) -> None:
        """Write the picture."""
        with replacing(self._folder / f"{step:07d}-{name}.png") as partial:
            partial.write_bytes(encode_png(pixels))

    def result(self, step: int, table: Mapping[str, Any]) -> None:
        """Do nothing, because the manifest or result.json has the result."""

    def close(self) -> None:
        """Do nothing, because everything is written at once."""
