"""Codistillation: the mean of what the other students say of the same view."""

import torch
from jaxtyping import Float
from torch import Tensor

from dfkd.distill.align import full
from dfkd.distill.distributions import kl
from dfkd.distill.loss import Loss
from dfkd.distill.losses.dml import peers
from dfkd.models.features.outputs import Outputs
from dfkd.system.limits import check_at_least
from dfkd.system.paper import Paper


class Codistillation(Loss):
    """The mean of the other students' distributions, from a step on.

        KL(mean over peers of softmax(p) || softmax(s))

    s and p are the logits [batch, classes] of the student and of another student. The value is averaged over the batch.
    It is 0 in the first `burn_in` steps, in which the students come to differ. The other students are those of
    `--also`; they are held fixed. Their weights are exchanged every `every` steps, and between that they answer by old
    ones. The loss knows no teacher: add it to one that does, as in `--loss kd codistillation`.

    The paper has the cross-entropy, which has the same gradient and is not 0 at equality. Its other term is that of the
    images' labels. Images are unlabeled here, and the teacher's answers stand in for them.

    In the paper each student has machines of its own, and rare exchanges save traffic. Here all are in one process, and
    copies of old weights take a pass more: `every` is for studying what they do. With every=1 the predictions are those
    of the same step.

    Raises: RequestError unless burn_in >= 0 and every >= 1, and where there is no other student.
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
        self.steps = 0  # on the host, so that no step waits for the device; part of the state all the same

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """The loss of a batch; where gradients are recorded, this counts as a step."""
        target = torch.stack([full(p).softmax(dim=1) for p in peers(teacher)]).mean(dim=0)
        if self.steps < self.preparation:
            self.steps += torch.is_grad_enabled()
            return target.new_zeros(())
        return kl(target, full(student.logits).log_softmax(dim=1))

    def get_extra_state(self) -> Tensor:
        """How many steps there were, for the checkpoint."""
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from a checkpoint."""
        self.steps = int(state)
