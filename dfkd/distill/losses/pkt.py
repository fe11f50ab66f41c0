"""Probabilistic knowledge transfer: the distribution of each sample's neighbors in the batch."""

import torch
from jaxtyping import Float
from torch import Tensor

from dfkd.distill import align
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.paper import Paper

EPSILON = 1e-7


class PKT(Loss):
    """The distribution of every sample over the other samples of its batch, by KL divergence.

        mean over i of sum over j of p_j|i log(p_j|i / q_j|i)
        p_j|i = K(t_i, t_j) / sum over k of K(t_i, t_k),   q likewise of the student
        K(x, y) = (1 + cos(x, y)) / 2

    t_i are the teacher's features of the tap `last`, [batch, width]. p_j|i and p_i|j differ: rows are not made
    symmetric. The loss is 0 at equality. Neither scale nor width of the features matters.

    The paper (arXiv 1803.10837) recommends the cosine kernel. `diagonal` counts a sample as its own neighbor (K = 1),
    as the authors' code and all later collections do. The paper's sums leave it out. Ours: the mean over samples, not
    the sum, and 1e-7 added to K. A batch of one costs 0. Without `diagonal` a batch of two costs 0, too, because each
    row has one entry.

    `weight` is 30,000 / 64. The paper learns from this loss alone. RepDistiller gives 30,000 for CIFAR-100 to the mean
    over all entries of the [batch, batch] array, in batches of 64. That is this mean over rows divided by 64.

    Raises: RequestError for features that are neither [batch, width] nor [batch, channels, height, width].
    """

    family = "relations"
    paper = Paper("Learning deep representations with probabilistic knowledge transfer", 2018, "1803.10837")
    taps = ("last",)
    weight = 30_000 / 64

    def __init__(self, diagonal: bool = False) -> None:
        super().__init__()
        self.diagonal = diagonal

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        if len(student.logits) < 2:
            return student.logits.sum() * 0
        q, p = (self._conditional(align.unit(align.vectors(x))) for x in (student, teacher))
        left_out = p == 0  # the diagonal
        ratio = q.masked_fill(left_out, 1) / p.masked_fill(left_out, 1)
        # equals the sum of -p log(ratio), as p and q each sum to 1; every term is small, which avoids cancellation
        return (p * (ratio - 1 - ratio.log())).sum(dim=1).mean()

    def _conditional(self, x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch batch"]:
        # rounding can take a cosine just below -1
        kernel = ((1 + x @ x.T) / 2).clamp_min(0) + EPSILON
        if not self.diagonal:
            kernel = kernel.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), 0)
        return kernel / kernel.sum(dim=1, keepdim=True)
