"""Interface of a fit of the student to its teacher before the first step."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from dfkd.models.classifier import Classifier
from dfkd.training.sources import Batch


class Fit(ABC):
    """Fit of some of the student's layers by least squares."""

    what: str
    """Fitted layers, in words."""
    views: int
    """Number of views that the teacher answers for the fit."""

    @abstractmethod
    def run(
        self,
        student: nn.Module,
        teacher: Classifier,
        augment: Callable[[Batch], Float[Tensor, "batch channels height width"]],
    ) -> None:
        """Fit the student on views like those of the training, which `augment` makes of batches."""
