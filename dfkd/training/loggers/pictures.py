"""Pictures of a training as PNG files in its folder; `dfkd inspect` shows those of a generator."""

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
        for file in self._folder.glob("*.png"):  # of steps that a resumed training takes again
            number = file.name.partition("-")[0]
            if number.isdecimal() and int(number) >= step:
                file.unlink()

    def scalars(self, step: int, row: Mapping[str, float]) -> None:
        """They are in metrics.jsonl."""

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "height width channels"]) -> None:
        """Write it."""
        with replacing(self._folder / f"{step:07d}-{name}.png") as partial:
            partial.write_bytes(encode_png(pixels))

    def result(self, step: int, table: Mapping[str, Any]) -> None:
        """It is in the manifest, or in result.json."""

    def close(self) -> None:
        """Nothing is left to write."""
