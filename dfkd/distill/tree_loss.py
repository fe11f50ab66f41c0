"""The loss of the soft decision tree, an architecture of its own; `--loss tree` finds it here."""

import torch
from jaxtyping import Float
from torch import Tensor

from dfkd.distill.align import full
from dfkd.distill.loss import Loss
from dfkd.models.architectures.soft_tree import reached
from dfkd.models.features.outputs import Outputs
from dfkd.system.limits import check_above, check_at_least
from dfkd.system.paper import Paper

__all__ = ["Tree"]

_EDGE = 1e-6
"""Smallest distance of a node's share from 0 and 1, so that its logarithm stays finite."""
_UNREACHED = 1e-20
"""Mean arrivals below which a node's share has no gradient. The gradient of the quotient overflows near 1e-38."""


class Tree(Loss):
    """Each leaf's cross-entropy to the teacher, weighted by the path to it, and a penalty on one-sided nodes.

        - sum_l P_l sum_k p_k log Q_lk - penalty * sum_i 2^-d_i (log a_i + log(1 - a_i)) / 2
        a_i = mean of P_i r_i / mean of P_i

    p = softmax(t / `temperature`) is the teacher's distribution [batch, classes] and Q_l that of leaf l. An image
    reaches node i, at depth d_i (the root's is 0), with probability P_i, and leaf l with P_l. Node i turns right with
    probability r_i. The first term is averaged over the batch. The means of a_i are running means over this batch and
    earlier ones. A batch that is n batches old has the weight (1 - 1 / w)^n, with w = `window` * 2^d_i. Deep nodes
    average over more batches because few images reach them.

    The paper (arXiv 1711.09784) describes the first term in words. It prints log sum_l P_l sum_k p_k log Q_lk, the
    logarithm of a negative number. The formula here follows the words. The paper's target is the true label or a
    network's prediction; here it is the teacher's prediction. Ours are `window` and the gradient of a_i. It is the
    current batch's gradient, as large as if the whole mean were of this batch.

    This loss is for the student `soft_tree` only. `penalty` is the paper's lambda, whose value the paper does not
    state.

    Raises: RequestError unless temperature > 0, penalty >= 0 and window >= 1.
    """

    family = "outputs"
    paper = Paper("Distilling a neural network into a soft decision tree", 2017, "1711.09784")
    student_modules = ("turns",)

    def __init__(self, penalty: float = 0.1, temperature: float = 1.0, window: float = 1.0) -> None:
        super().__init__()
        check_at_least(penalty=penalty)
        check_above(temperature=temperature)
        check_at_least(1, window=window)
        self.penalty, self.temperature, self.window = penalty, temperature, window
        self.depths: Tensor
        self.sums: Tensor

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """Create the running sums for each node."""
        nodes, device = student.features["turns"].shape[1], student.logits.device
        numbers = torch.arange(1, nodes + 1, device=device)
        self.register_buffer("depths", torch.log2(numbers.float()).floor(), persistent=False)
        # sums over the images that turn right, over those that arrive, and over the batches
        self.register_buffer("sums", torch.zeros(3, nodes, device=device))

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        p = (full(teacher.logits) / self.temperature).softmax(dim=1)
        error = -(p * full(student.logits)).sum(dim=1).mean()
        if self.penalty == 0:
            return error
        share = self._share(full(student.features["turns"])).clamp(_EDGE, 1 - _EDGE)
        one_sided = -(share.log() + (1 - share).log()) / 2
        return error + self.penalty * (one_sided * 0.5**self.depths).sum()

    def _share(self, right: Float[Tensor, "batch nodes"]) -> Float[Tensor, " nodes"]:
        """Return, for each node, the share of its images that turn right.

        The value is that of the running means, and the gradient that of the current batch. A node that images no longer
        reach keeps its share.
        """
        arrive = torch.cat(reached(right)[:-1], dim=1)
        now = torch.stack([(arrive * right).mean(dim=0), arrive.mean(dim=0), torch.ones_like(right[0])])
        decay = 1 - 1 / (self.window * 2**self.depths)
        sums = decay * self.sums + now.detach()
        if torch.is_grad_enabled():
            self.sums.copy_(sums)
        turning, arriving, batches = sums
        now = torch.where(arriving > _UNREACHED * batches, now, now.detach())
        moving = [whole + batches * (part - part.detach()) for whole, part in ((turning, now[0]), (arriving, now[1]))]
        return moving[0] / moving[1].clamp_min(torch.finfo(right.dtype).tiny)
