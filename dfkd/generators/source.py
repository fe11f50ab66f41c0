"""A method as the training loop's source of images: its turns, its images, its cost, and the signs of a collapse."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dfkd.generators.base import Method, checked_images, checked_terms, method_code, quantize
from dfkd.generators.health import Health
from dfkd.system.shares import Share
from dfkd.training.sources import Batch, Deaf, Student


class GeneratedSource(Deaf):
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
        """The teacher's features that the method reads."""
        return self.method.taps

    @property
    def teacher_forwards(self) -> int:
        """Images that the teacher has answered for the method's own sake."""
        return self.method.teacher_forwards

    @property
    def generator_steps(self) -> int:
        """Updates of the method."""
        return self.method.updates

    def sample(self, count: int, share: Share | None = None) -> Batch:
        """The next `count` images: every process makes all of them, and learns from its share."""
        with method_code(self.method):
            images = self.method.sample(count, self._random)
        images = checked_images(self.method, images, count)
        return Batch(quantize(images if share is None else images[share.rows]), None, share)

    def warm_up(self, student: Student) -> dict[str, Tensor] | None:
        """An update of the method's first turn; None when it is over."""
        if self.method.updates >= self.method.first:
            return None
        self._update(student)
        return dict(self._seen)

    def update(self, student: Student) -> dict[str, Tensor]:
        """The method's turn, where a step of the student begins with one. Returns what was last seen of it."""
        method, step = self.method, self._steps
        self._steps += 1
        if step and step % method.every == 0:  # the first turn was the warm-up
            for _ in range(method.turns):
                self._update(student)
        self._seen |= self._health.observe(self._steps)
        return dict(self._seen)

    def _update(self, student: Student) -> None:
        with method_code(self.method):
            seen = self.method.update(student)
        self._seen |= checked_terms(self.method, seen)

    def state_dict(self) -> dict[str, Any]:
        """The method, the position in its turns, and the random numbers of the images."""
        return {
            "method": self.method.state_dict(),
            "steps": self._steps,
            "seen": self._seen,
            "random": self._random.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.method.load_state_dict(state["method"])
        self._steps, self._seen = int(state["steps"]), dict(state["seen"])
        self._random.set_state(state["random"])
