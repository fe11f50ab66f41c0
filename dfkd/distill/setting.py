"""What some losses need beside the outputs of a batch: the two networks themselves, and how many images there are."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from dfkd.models.features.outputs import Outputs


class Counted:
    """Answers a view, and counts the images: an answer for a loss costs as much as one for the loop."""

    def __init__(self, answer: Callable[[Tensor], Outputs]) -> None:
        self._answer, self.images = answer, 0

    def __call__(self, view: Tensor) -> Outputs:
        """The answer to a view [batch, channels, height, width]."""
        self.images += len(view)
        return self._answer(view)


@dataclass(frozen=True)
class Setting:
    """Given once to losses that have a method `bind(setting)`, before `setup`."""

    student: Callable[[Tensor], Outputs]
    """Answers a view [batch, channels, height, width]; gradients reach the student and the view."""
    teacher: Callable[[Tensor], Outputs]
    """Answers a view; gradients reach the view, never the teacher's weights."""
    student_head: nn.Linear | None
    """The layer that gives the logits, where it is linear and its input is the tap `last`."""
    teacher_head: nn.Linear | None
    """The same of the teacher."""
    images: int | None
    """How many different images there are, so that `Outputs.rows` is below it; None where images are not stored."""
