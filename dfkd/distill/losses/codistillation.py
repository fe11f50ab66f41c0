"""Codistillation: each student learns from the mean prediction of the other students."""

import torch
from jaxtyping import Float
from torch import Tensor

from dfkd.distill.align import full
from dfkd.distill.distributions import kl
from dfkd.distill.loss import PreparedLoss
from dfkd.distill.losses.dml import peers
from dfkd.models.features.outputs import Outputs
from dfkd.system.limits import check_at_least
from dfkd.system.paper import Paper


class Codistillation(PreparedLoss):
    """The mean of the other students' class probabilities, after a burn-in.

        KL(mean over peers of softmax(p) || softmax(s))

    s and p are the logits [batch, classes] of the student and of another student. The value is averaged over the batch.
    It is 0 in the first `burn_in` steps, in which the students become different. The other students are those of
    `--also`; no gradient reaches them. Their weights are copied every `every` steps, and p are the logits of these
    copies. The loss does not use the teacher: add it to one that does, as in `--loss kd codistillation`.

    The paper (arXiv 1804.03235) has the cross-entropy, which has the same gradient and is not 0 at equality. Its other
    term is that of the images' labels. Images are unlabeled here, and the teacher's output replaces the labels.

    In the paper each student has machines of its own, and rare exchanges save traffic. Here all students are in one
    process, and copies of old weights cost one more forward pass. `every` is for studying their effect. With every=1
    the predictions are those of the same step.

    Raises: RequestError unless burn_in >= 0 and every >= 1, and if there is no other student.
    """

    family = "students"
    per_image = True
    reads_peers = True
    paper = Paper("Large scale distributed neural network training through online distillation", 2018, "1804.03235")

    def __init__(self, burn_in: int = 100, every: int = 1) -> None:
        super().__init__()
        check_at_least(burn_in=burn_in)
        check_at_least(1, every=every)
        self.preparation, self.peers_every = burn_in, every

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch, and count a step of the burn-in if gradients are recorded."""
        target = torch.stack([full(p).softmax(dim=1) for p in peers(teacher)]).mean(dim=0)
        if self.steps < self.preparation:
            self.steps += torch.is_grad_enabled()
            return target.new_zeros(())
        return kl(target, full(student.logits).log_softmax(dim=1))
