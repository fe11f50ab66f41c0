"""The networks, their last linear layers and the number of images, for losses that need more than outputs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from dfkd.models.features.outputs import Outputs


class Counted:
    """Callable that runs a network on a view and counts the images.

    The images on which losses run the teacher cost as much as those of the loop.
    """

    def __init__(self, answer: Callable[[Tensor], Outputs]) -> None:
        self._answer, self.images, self._counts = answer, 0, True

    def __call__(self, view: Tensor) -> Outputs:
        """Return the network's outputs for a view [batch, channels, height, width]."""
        self.images += len(view) if self._counts else 0
        return self._answer(view)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Stop counting within the block, in which losses are checked before the training."""
        self._counts = False
        try:
            yield
        finally:
            self._counts = True


@dataclass(frozen=True)
class Setting:
    """The two networks of a training, for `Loss.bind`."""

    student: Callable[[Tensor], Outputs]
    """Function from a view [batch, channels, height, width] to the student's outputs.

    Gradients reach the student and the view."""
    teacher: Callable[[Tensor], Outputs]
    """Function from a view to the teacher's outputs.

    Gradients reach the view, never the teacher's weights."""
    student_head: nn.Linear | None
    """Student's layer that computes the logits, if it is linear and its input is the tap `last`."""
    teacher_head: nn.Linear | None
    """Teacher's layer that computes the logits, on the same conditions."""
    images: int | None
    """Number of different images: `Outputs.rows` is below it. None if images are not stored."""
