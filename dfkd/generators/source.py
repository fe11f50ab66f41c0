"""Adapter from a method to a source of the training loop: its turns, images, cost and health metrics."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dfkd.generators.base import Method, drawn, quantize, updated
from dfkd.generators.health import Health
from dfkd.system.shares import Share
from dfkd.training.sources import Batch, NotFollowing, Student


class GeneratedSource(NotFollowing):
    """Images that a method makes while the student learns from them."""

    images = None

    def __init__(self, method: Method) -> None:
        self.method = method
        self._random = torch.Generator(method.task.device).manual_seed(method.task.seed + 1)
        self._steps = 0
        self._seen: dict[str, Tensor] = {}
        self._health = Health(method)

    @property
    def taps(self) -> frozenset[str]:
        """Features of the teacher that the method reads."""
        return self.method.taps

    @property
    def teacher_forwards(self) -> int:
        """Number of images that the teacher has answered for the method."""
        return self.method.teacher_forwards

    @property
    def generator_steps(self) -> int:
        """Number of updates of the method."""
        return self.method.updates

    def sample(self, count: int, share: Share | None = None) -> Batch:
        """Return the next `count` images. Every process makes all of them and returns its share."""
        images = drawn(self.method, count, lambda: self.method.sample(count, self._random))
        return Batch(quantize(images if share is None else images[share.rows]), None, share)

    def warm_up(self, student: Student) -> dict[str, Tensor] | None:
        """Take one update of the method's first turn. Returns its terms, or None when the turn is over."""
        if self.method.updates >= self.method.first:
            return None
        self._update(student)
        return dict(self._seen)

    def update(self, student: Student) -> dict[str, Tensor]:
        """Run the method's turn if one is due before this student step. Returns the latest metrics of the method."""
        method, step = self.method, self._steps
        self._steps += 1
        if step and step % method.every == 0:  # warm_up was the first turn
            for _ in range(method.turns):
                self._update(student)
        self._seen |= self._health.observe(self._steps)
        return dict(self._seen)

    def _update(self, student: Student) -> None:
        self._seen |= updated(self.method, student)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the method and of the random numbers, the step, and the latest metrics."""
        return {
            "method": self.method.state_dict(),
            "steps": self._steps,
            "seen": self._seen,
            "random": self._random.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state from `state_dict`."""
        self.method.load_state_dict(state["method"])
        self._steps, self._seen = int(state["steps"]), dict(state["seen"])
        self._random.set_state(state["random"])
