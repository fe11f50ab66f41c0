"""Implicit structured relation: the distances among a batch's predictions."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.outputs import Outputs


class Relation(nn.Module):
    """Huber loss (delta 1) between the teacher's and the student's pairwise distances of predictions, each divided by
    its mean over the batch's pairs; averaged over the pairs.

    Explicit and implicit knowledge distillation via unlabeled data, 2023, https://arxiv.org/abs/2302.08771, describes a
    relation among predictions matched with the Huber loss. Which relation is our reading: the distance of Relational
    knowledge distillation, https://arxiv.org/abs/1904.05068, on `of` = probabilities or logits. Pairs are the distinct
    ones, each once. A batch of one has no pairs and costs 0; identical predictions have distance 0 and gradient 0.
    """

    def __init__(self, of: Literal["probabilities", "logits"] = "probabilities") -> None:
        super().__init__()
        self.of = of

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """The loss of a batch."""
        if len(student.logits) < 2:
            return student.logits.sum() * 0
        return F.huber_loss(self._relation(student.logits), self._relation(teacher.logits))

    def _relation(self, logits: Float[Tensor, "batch classes"]) -> Float[Tensor, " pairs"]:
        distances = F.pdist(logits.softmax(dim=1) if self.of == "probabilities" else logits)
        return distances / distances.mean().clamp_min(1e-12)
