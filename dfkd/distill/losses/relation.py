"""Implicit structured relation: the pairwise distances among a batch's predictions."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.paper import Paper


class Relation(Loss):
    """The distances among a batch's predictions, by the Huber loss.

        mean over pairs of huber(d_s, d_t)

    d is the Euclidean distance of two samples' predictions [batch, classes], divided by its mean over the batch's
    pairs. Indices s and t are student and teacher. Huber's delta is 1. Each pair of distinct samples counts once.

    The paper (arXiv 2302.08771) describes a relation among predictions, matched with the Huber loss. It does not define
    the relation. Ours is the distance of Relational knowledge distillation (https://arxiv.org/abs/1904.05068), between
    probabilities or logits, as `of` selects. A batch of one has no pairs and costs 0. Identical predictions have
    distance 0 and gradient 0.
    """

    family = "relations"
    paper = Paper("Explicit and implicit knowledge distillation via unlabeled data", 2023, "2302.08771")

    def __init__(self, of: Literal["probabilities", "logits"] = "probabilities") -> None:
        super().__init__()
        self.of = of

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        if len(student.logits) < 2:
            return student.logits.sum() * 0
        ours, theirs = (x.logits.softmax(dim=1) if self.of == "probabilities" else x.logits for x in (student, teacher))
        return F.huber_loss(relative_distances(ours), relative_distances(theirs))


def relative_distances(rows: Float[Tensor, "batch width"]) -> Float[Tensor, " pairs"]:
    """Return the Euclidean distances of distinct pairs of rows, divided by their mean; 0 if all rows are equal."""
    distances = F.pdist(rows)
    return distances / distances.mean().clamp_min(1e-12)
