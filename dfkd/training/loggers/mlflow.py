"""Logger for MLflow: MLFLOW_TRACKING_URI, else files in the folder `mlruns` beside the training's own."""

import os
import re
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dfkd.training.loggers.base import Logger, Training, as_text, numbers

LONGEST = 500
"""Largest length of a parameter, in characters. Older servers take no more."""


class MLflow(Logger):
    """One run of the experiment `dfkd`, or MLFLOW_EXPERIMENT_NAME. A resumed training continues the same run."""

    needs = "mlflow"

    def __init__(self, training: Training, step: int) -> None:
        from mlflow.tracking import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            uri = (training.folder.parent.parent / "mlruns").resolve().as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # without this, MLflow refuses a store of files
        self._client = MlflowClient(uri)
        self._run, begun = training.remembered("mlflow", lambda: self._new(training))
        self._last = -1
        if begun:  # MLflow cannot replace rows, and those that exist are the same
            last = self._client.get_run(self._run).data.tags.get("last_step", "-1")
            self._last = int(last)

    def _new(self, training: Training) -> str:
        """Create a run with the options as parameters."""
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "dfkd")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        run = self._client.create_run(experiment, run_name=training.name).info.run_id
        params = [Param(name, as_text(value)[:LONGEST]) for name, value in training.options.items()]
        for start in range(0, len(params), 100):  # a server takes no more at once
            self._client.log_batch(run, params=params[start : start + 100])
        return str(run)

    def scalars(self, step: int, row: Mapping[str, float]) -> None:
        """Log each metric under its name. Characters that MLflow does not allow become `_`."""
        from mlflow.entities import Metric, RunTag

        if step <= self._last:
            return
        now = int(time.time() * 1000)
        metrics = [Metric(re.sub(r"[^\w\-. /]", "_", name), value, now, step) for name, value in row.items()]
        self._client.log_batch(self._run, metrics=metrics, tags=[RunTag("last_step", str(step))])

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "height width channels"]) -> None:
        """Log the picture as a PNG file of the run."""
        self._client.log_image(self._run, pixels, f"images/{name}-{step:07d}.png")

    def result(self, step: int, table: Mapping[str, Any]) -> None:
        """Log the result as result.json, and its numbers as metrics."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(f"result/{name}", value, now, step) for name, value in numbers(table).items()]
        self._client.log_batch(self._run, metrics=metrics)
        self._client.log_dict(self._run, dict(table), "result.json")
        self._client.set_terminated(self._run)

    def close(self) -> None:
        """Do nothing, because everything is written at once."""
