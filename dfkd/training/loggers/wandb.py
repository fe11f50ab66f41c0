"""Logger for Weights & Biases, configured by WANDB_MODE=offline, WANDB_PROJECT and WANDB_ENTITY."""

import os
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import numpy as np
from jaxtyping import UInt8

from dfkd.training.loggers.base import Logger, Training, as_text, numbers


class WeightsAndBiases(Logger):
    """One run of the project `dfkd`, or WANDB_PROJECT. A resumed training continues the same run."""

    needs = "wandb"

    def __init__(self, training: Training, step: int) -> None:
        import wandb

        identity, _ = training.remembered("wandb", lambda: uuid4().hex[:8])
        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "dfkd"),
            name=training.name,
            id=identity,
            resume="allow",
            dir=str(training.folder),
            config=dict(training.options),
            # without these, wandb records terminal output, code and git data
            settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
        )

    def scalars(self, step: int, row: Mapping[str, float]) -> None:
        """Log each metric under its name."""
        self._run.log(dict(row), step=step)

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "height width channels"]) -> None:
        """Log the picture under `images/`."""
        plain = pixels[..., 0] if pixels.shape[2] == 1 else pixels
        self._run.log({f"images/{name}": self._wandb.Image(plain)}, step=step)

    def result(self, step: int, table: Mapping[str, Any]) -> None:
        """Log the result as the run's summary, and as a table."""
        rows = [[name, as_text(value)] for name, value in table.items()]
        self._run.log({"result": self._wandb.Table(columns=["name", "value"], data=rows)}, step=step)
        self._run.summary.update({f"result/{name}": value for name, value in numbers(table).items()})

    def close(self) -> None:
        """End the run, or this part of the run."""
        self._run.finish()
