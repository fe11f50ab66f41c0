"""Relations of a batch's probabilities, among the classes of an image and among the images of a class."""

import torch
from jaxtyping import Float
from torch import Tensor

from dfkd.distill.align import full
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.limits import check_above, check_at_least
from dfkd.system.paper import Paper

CONSTANT = 1e-4
"""Probabilities whose distance from their mean has a smaller norm are constant: rounding has no relation to teach."""
FLATTEST = 0.01
"""Probabilities of the student that vary less than this share of the teacher's are not scaled up further."""


class DIST(Loss):
    """The probabilities of each image over classes, and of each class over images, up to scale and shift.

        T^2 * (beta * mean over rows of (1 - r) + gamma * mean over columns of (1 - r))

    Rows and columns are those of the softened probabilities [batch, classes] at `temperature` T. r is Pearson's
    correlation of the teacher's row or column with the student's. The loss is also 0 where they differ by a positive
    factor and a shift.

    The factor T^2 is that of the authors' code. `beta` and `gamma` (2 each) and `temperature` (4) are the paper's for
    CIFAR-100. The paper adds cross-entropy to the label with weight 1. Labels are not known here, and `weight` is 1.
    The class in the authors' code has 1 for all three.

    The correlation of a constant is undefined. The authors add 1e-8 to the product of the norms. A constant row then
    costs 1 even at equality, and its gradient reaches 1e8. Ours:

    - Rows and columns in which the teacher is constant cost 0 (norm of the distance from the mean at most 0.0001). So
      equality costs 0, and a batch of one has rows alone.
    - A student's norm counts as at least 1 % of the teacher's, and at least 0.0001. So a student that begins with equal
      logits gets a finite gradient.
    - Elsewhere this is Pearson's correlation without an epsilon.

    Raises: RequestError unless temperature > 0, beta and gamma >= 0.
    """

    family = "outputs"
    paper = Paper("Knowledge distillation from a stronger teacher", 2022, "2205.10536")

    def __init__(self, beta: float = 2.0, gamma: float = 2.0, temperature: float = 4.0) -> None:
        super().__init__()
        check_above(temperature=temperature)
        check_at_least(beta=beta, gamma=gamma)
        self.beta, self.gamma, self.temperature = beta, gamma, temperature

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """The loss of a batch."""
        ours, theirs = ((full(outputs.logits) / self.temperature).softmax(dim=1) for outputs in (student, teacher))
        relations = self.beta * _distance(ours, theirs) + self.gamma * _distance(ours.T, theirs.T)
        return relations * self.temperature**2


def _distance(ours: Float[Tensor, "rows entries"], theirs: Float[Tensor, "rows entries"]) -> Float[Tensor, ""]:
    """1 - Pearson's correlation, averaged over the rows; those in which the teacher is constant add 0."""
    ours, theirs = (x - x.mean(dim=1, keepdim=True) for x in (ours, theirs))
    norm = torch.linalg.vector_norm(theirs, dim=1)
    floor = (FLATTEST * norm).clamp_min(CONSTANT)
    # vector_norm has gradient 0 at 0
    correlation = (ours * theirs).sum(dim=1) / (
        torch.linalg.vector_norm(ours, dim=1).maximum(floor) * norm.maximum(floor)
    )
    return torch.where(norm > CONSTANT, 1 - correlation, 0.0).mean()
