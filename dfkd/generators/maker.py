"""The learner of `dfkd generate`: a method that trains alone, or against a fixed student."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from dfkd.formats.run_records import Checkpoint
from dfkd.generators.base import Method, quantize, updated
from dfkd.generators.health import Health
from dfkd.training.log import SHOWN
from dfkd.training.loop import Pace, joined
from dfkd.training.sources import Student


class Maker:
    """Learner of the training loop that trains a method alone, or with a fixed student."""

    def __init__(self, method: Method, name: str, student: Student | None, plan: Pace) -> None:
        self.method, self.plan, self._name, self._student = method, plan, name, student
        self.step, self.seconds = 0, 0.0
        self._health, self._seen = Health(method), dict[str, Tensor]()

    @property
    def hint(self) -> str:
        """Advice for the error message when a loss or a weight is not finite."""
        name = self._name
        return f"give the method a lower rate, such as {name}:lr=1e-4, or another --seed"

    def begin(self) -> None:
        """Do nothing: a method needs no preparation."""

    def warm_up(self) -> None:
        """Do nothing: every update is a step of this training."""

    def advance(self) -> Mapping[str, Tensor | float]:
        """Take one update of the method and return its metrics."""
        self._seen |= updated(self.method, self._student)
        self.step += 1
        if self.step >= self.method.first:
            self._seen |= self._health.observe(self.step)
        return joined({}, self._seen)

    def tell(self, row: Mapping[str, float]) -> str:
        """Return the first terms of the method's loss for the progress bar."""
        return ", ".join(f"{name} {value:.3f}" for name, value in [*row.items()][:3])

    def pictures(self) -> dict[str, np.ndarray]:
        """Return the images of the last observation, for the log."""
        seen = self._health.images
        return {} if seen is None else {"generated": quantize(seen[:SHOWN]).cpu().numpy()}

    def learnt(self) -> Iterable[Mapping[str, Any]]:
        """Return the state of the method, whose values must stay finite."""
        return (self.method.state_dict(),)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the method and its latest metrics."""
        return {"method": self.method.state_dict(), "seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any], progress: Checkpoint) -> None:
        """Restore the state, step and seconds of a checkpoint."""
        self.method.load_state_dict(state["method"])
        self._seen = dict(state["seen"])
        self.step, self.seconds = progress.step, progress.seconds
