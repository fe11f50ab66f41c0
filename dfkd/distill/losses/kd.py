"""Knowledge distillation on the softened outputs, with the classes that are dropped from the teacher's answer."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from dfkd.distill.distributions import TEMPERATURE, kl
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.limits import check_above, check_at_least
from dfkd.system.paper import Paper


class KD(Loss):
    """The teacher's softened distribution over the classes and, where wanted, its most probable class.

    temperature^2 * KL(softmax(t / temperature) || softmax(s / temperature)) + `hard` * cross-entropy of softmax(s) to
    argmax t, averaged over the batch; t and s are the teacher's and the student's logits.

    The paper adds the cross-entropy to the label, at temperature 1, with a considerably lower weight than the soft
    part's. Images are unlabelled here: the teacher's most probable class stands in for the label, and `hard` is 0
    unless it is given.

    Where the teacher's outputs carry a class-dropping mask (https://arxiv.org/abs/2302.08771, whose formula is not at
    hand; both rules are our reading), `dropped` says what becomes of the classes outside it:
    `bucket` adds them up to one class, in teacher and student alike: how much they hold is taught, its split is not;
    `renormalize` takes them out of the teacher's distribution and leaves the student its full softmax, which drives
    them to 0: at temperatures above 1 this takes out much of what the teacher says.

    Raises: RequestError unless temperature > 0 and hard >= 0.
    """

    family = "outputs"
    per_image = True
    paper = Paper("Distilling the knowledge in a neural network", 2015, "1503.02531")
    reads_kept = True

    def __init__(
        self, temperature: float = TEMPERATURE, dropped: Literal["bucket", "renormalize"] = "bucket", hard: float = 0.0
    ) -> None:
        super().__init__()
        check_above(temperature=temperature)
        check_at_least(hard=hard)
        self.temperature, self.dropped, self.hard = temperature, dropped, hard

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """The loss of a batch."""
        target = teacher.logits / self.temperature
        log_q = (student.logits / self.temperature).log_softmax(dim=1)
        if teacher.kept is not None and self.dropped == "renormalize":
            target = target.masked_fill(~teacher.kept, -torch.inf)
        p = target.softmax(dim=1)
        if teacher.kept is not None and self.dropped == "bucket":
            p, log_q = _with_bucket(p, log_q, teacher.kept)
        soft = kl(p, log_q) * self.temperature**2
        return soft + self.hard * F.cross_entropy(student.logits, teacher.logits.argmax(dim=1)) if self.hard else soft


def _with_bucket(
    p: Float[Tensor, "batch classes"], log_q: Float[Tensor, "batch classes"], kept: Bool[Tensor, "batch classes"]
) -> tuple[Float[Tensor, "batch classes_and_bucket"], Float[Tensor, "batch classes_and_bucket"]]:
    """The kept classes' probabilities (others 0) and the sum of the others behind them; the student's in logarithms."""
    rest_p = p.masked_fill(kept, 0).sum(dim=1, keepdim=True)
    rest_q = log_q.exp().masked_fill(kept, 0).sum(dim=1, keepdim=True)
    tiny = torch.finfo(log_q.dtype).tiny  # the student's rest may underflow, or be empty
    log_rest_q = rest_q.clamp_min(tiny).log()
    return torch.cat([p.masked_fill(~kept, 0), rest_p], dim=1), torch.cat([log_q, log_rest_q], dim=1)
