"""The loss of one architecture, the soft decision tree. `--loss tree` finds it here."""

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
"""A share of images that goes right is no nearer to 0 and 1: its logarithm stays finite."""


class Tree(Loss):
    """Each leaf's cross-entropy to the teacher, weighted by the path to it, and a penalty on one-sided nodes.

        - sum_l P_l sum_k p_k log Q_lk - penalty * sum_i 2^-d_i (log a_i + log(1 - a_i)) / 2
        a_i = mean of P_i r_i / mean of P_i

    p = softmax(t / `temperature`) is the teacher's distribution and Q_l that of leaf l. An image reaches node i, at
    depth d_i (the root's is 0), with probability P_i, and leaf l with P_l. Node i turns right with probability r_i. The
    first part is averaged over the batch. The means of a_i run over this batch and those before it: a batch that is n
    batches old counts (1 - 1 / w)^n, with w = `window` * 2^d_i, because few images reach a deep node.

    The paper describes the first part in words and prints log sum_l P_l sum_k p_k log Q_lk, the logarithm of a negative
    number. This is what the words say. The paper gives the target as true labels or as a network's predictions: here
    it is the teacher's. Ours: `window`, and that the gradient of a_i is that of the current batch, as large as if all
    of the mean were.

    It is for the student `soft_tree` alone. `penalty` is the paper's lambda, which it does not state.

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
        """Begin the running sums, one for each node."""
        nodes, device = student.features["turns"].shape[1], student.logits.device
        numbers = torch.arange(1, nodes + 1, device=device)
        self.register_buffer("depths", torch.log2(numbers.float()).floor(), persistent=False)
        # of the images that turn right, of those that arrive, and of the batches
        self.register_buffer("sums", torch.zeros(3, nodes, device=device))

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """The loss of a batch."""
        p = (full(teacher.logits) / self.temperature).softmax(dim=1)
        error = -(p * full(student.logits)).sum(dim=1).mean()
        if self.penalty == 0:
            return error
        share = self._share(full(student.features["turns"])).clamp(_EDGE, 1 - _EDGE)
        one_sided = -(share.log() + (1 - share).log()) / 2
        return error + self.penalty * (one_sided * 0.5**self.depths).sum()

    def _share(self, right: Float[Tensor, "batch nodes"]) -> Float[Tensor, " nodes"]:
        """Of the images that reach a node, those that turn right: by the running means, with the batch's gradient."""
        arrive = torch.cat(reached(right)[:-1], dim=1)
        now = torch.stack([(arrive * right).mean(dim=0), arrive.mean(dim=0), torch.ones_like(right[0])])
        decay = 1 - 1 / (self.window * 2**self.depths)
        sums = decay * self.sums + now.detach()
        if torch.is_grad_enabled():
            self.sums.copy_(sums)
        turning, arriving, batches = sums
        moving = [whole + batches * (part - part.detach()) for whole, part in ((turning, now[0]), (arriving, now[1]))]
        return moving[0] / moving[1].clamp_min(torch.finfo(right.dtype).tiny)
