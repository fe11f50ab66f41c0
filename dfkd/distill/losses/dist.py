"""Correlation of the class probabilities of student and teacher, within each image and within each class."""

import torch
from jaxtyping import Float
from torch import Tensor

from dfkd.distill.align import full
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.limits import check_above, check_at_least
from dfkd.system.paper import Paper

CONSTANT = 1e-4
"""Norm of the deviation from the mean up to which probabilities count as constant.

Below this norm the deviations are rounding errors."""
FLATTEST = 0.01
"""Lower bound of the student's norm in the correlation, as a share of the teacher's norm."""


class DIST(Loss):
    """The probabilities of each image over classes, and of each class over images, up to scale and shift.

        T^2 * (beta * mean over rows of (1 - r) + gamma * mean over columns of (1 - r))

    Rows and columns are those of the softened probabilities [batch, classes] at `temperature` T. r is Pearson's
    correlation of the teacher's row or column with the student's. The loss is also 0 if the two differ by a positive
    factor and a shift.

    The factor T^2 is that of the authors' code. `beta` and `gamma` (2 each) and `temperature` (4) are the values of the
    paper (arXiv 2205.10536) for CIFAR-100. The paper adds the cross-entropy with the label, with weight 1. Labels are
    not known here, and `weight` is 1. The class in the authors' code has 1 for all three parameters.

    The correlation of a constant is undefined. The authors add 1e-8 to the product of the norms. A constant row then
    costs 1 even at equality, and its gradient reaches 1e8. Ours:

    - Rows and columns in which the teacher is constant cost 0. Constant means that the norm of the deviation from the
      mean is at most 0.0001. Equality therefore costs 0, and a batch of one has only a row term.
    - The student's norm counts as at least 1 % of the teacher's, and at least 0.0001. A student that starts with equal
      logits then gets a finite gradient.
    - Otherwise this is Pearson's correlation without an epsilon.

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
        """Compute the loss of a batch."""
        ours, theirs = ((full(outputs.logits) / self.temperature).softmax(dim=1) for outputs in (student, teacher))
        relations = self.beta * _distance(ours, theirs) + self.gamma * _distance(ours.T, theirs.T)
        return relations * self.temperature**2


def _distance(ours: Float[Tensor, "rows entries"], theirs: Float[Tensor, "rows entries"]) -> Float[Tensor, ""]:
    """Return 1 - Pearson's correlation, averaged over the rows; rows in which the teacher is constant add 0."""
    ours, theirs = (x - x.mean(dim=1, keepdim=True) for x in (ours, theirs))
    norm = torch.linalg.vector_norm(theirs, dim=1)
    floor = (FLATTEST * norm).clamp_min(CONSTANT)
    # vector_norm has gradient 0 at 0
    correlation = (ours * theirs).sum(dim=1) / (
        torch.linalg.vector_norm(ours, dim=1).maximum(floor) * norm.maximum(floor)
    )
    return torch.where(norm > CONSTANT, 1 - correlation, 0.0).mean()
