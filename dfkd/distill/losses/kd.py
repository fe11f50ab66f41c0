"""Knowledge distillation on softened probabilities, with optional class dropping."""

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
    """The teacher's softened class probabilities and, if `hard` is set, its most probable class.

        T^2 * KL(softmax(t / T) || softmax(s / T)) + hard * CE(softmax(s), argmax t)

    s and t are the logits [batch, classes] of student and teacher, and T is the `temperature`. CE is the cross-entropy.
    The value is averaged over the batch.

    The paper (arXiv 1503.02531) adds the cross-entropy with the label, at temperature 1. The weight of this term is
    considerably lower than that of the soft term. Images are unlabeled here, so the teacher's most probable class
    replaces the label. `hard` is the weight of this term and is 0 by default.

    The teacher's outputs may carry a class-dropping mask (https://arxiv.org/abs/2302.08771). That paper's formula was
    not available; both rules below are our reading. `dropped` sets how the classes outside the mask are treated:

    - `bucket` adds up their probabilities into one class, for teacher and student alike. The student learns the sum of
      the dropped classes, not its split.
    - `renormalize` removes the dropped classes from the teacher's distribution only. The student keeps its full
      softmax, and the loss drives its dropped classes to 0. At temperatures above 1 this removes much of the teacher's
      distribution.

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
        """Compute the loss of a batch."""
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
    """Return p and log q with the dropped classes as one more class; dropped classes have p = 0."""
    rest_p = p.masked_fill(kept, 0).sum(dim=1, keepdim=True)
    rest_q = log_q.exp().masked_fill(kept, 0).sum(dim=1, keepdim=True)
    tiny = torch.finfo(log_q.dtype).tiny  # the student's rest may underflow, or be empty
    log_rest_q = rest_q.clamp_min(tiny).log()
    return torch.cat([p.masked_fill(~kept, 0), rest_p], dim=1), torch.cat([log_q, log_rest_q], dim=1)
