"""What some losses need beside the outputs of a batch: the two networks themselves, and how many images there are."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from dfkd.models.features.outputs import Outputs


class Counted:
    """Answers a view, and counts the images: an answer for a loss costs as much as one for the loop."""

    def __init__(self, answer: Callable[[Tensor], Outputs]) -> None:
        self._answer, self.images, self._counts = answer, 0, True

    def __call__(self, view: Tensor) -> Outputs:
        """The answer to a view [batch, channels, height, width]."""
        self.images += len(view) if self._counts else 0
        return self._answer(view)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Within, answers cost nothing: losses are tried before the training."""
        self._counts = False
        try:
            yield
        finally:
            self._counts = True

    def resume(self, images: int) -> None:
        """Go on from so many."""
        self.images = images


@dataclass(frozen=True)
class Setting:
    """The two networks of a training, for `Loss.bind`."""

    student: Callable[[Tensor], Outputs]
    """Answers a view [batch, channels, height, width]. Gradients reach the student and the view."""
    teacher: Callable[[Tensor], Outputs]
    """Answers a view. Gradients reach the view, never the teacher's weights."""
    student_head: nn.Linear | None
    """The layer that gives the logits, if it is linear and its input is the tap `last`."""
    teacher_head: nn.Linear | None
    """The same of the teacher."""
    images: int | None
    """The number of different images: `Outputs.rows` is below it. None if images are not stored."""
