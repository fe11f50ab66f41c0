"""Matching of the logits themselves, without a softmax."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from dfkd.distill.align import full
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.paper import Paper


class Logits(Loss):
    """The teacher's logits as they are.

    The squared difference of the logits (`norm=l2`), or the absolute one (`norm=l1`), averaged over classes and batch.
    Every class counts alike, whatever its probability or rank.

    The paper trains by l2 regression on the logits; Comparing Kullback-Leibler divergence and mean squared error loss
    in knowledge distillation, 2021, https://arxiv.org/abs/2105.08919, finds it the better of the two and uses it alone,
    with `weight` 1. Both write the sum over classes (the former with 1/2); the mean is the code's of the latter. The l1
    form is neither's.

    A constant added to all logits of an image says nothing of it. `centered` subtracts each image's mean logit first;
    half of that l2 form is the limit of kd at high temperatures (https://arxiv.org/abs/2105.08919, and
    https://arxiv.org/abs/1503.02531, which assumes it). The default is the papers': logits as they are, whose mean is
    matched, too, and the second paper sees its advantage over kd in that.
    """

    family = "outputs"
    per_image = True
    paper = Paper("Do deep nets really need to be deep?", 2013, "1312.6184")

    def __init__(self, norm: Literal["l1", "l2"] = "l2", centered: bool = False) -> None:
        super().__init__()
        self.norm, self.centered = norm, centered

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """The loss of a batch."""
        difference = full(student.logits) - full(teacher.logits)
        if self.centered:
            difference = difference - difference.mean(dim=1, keepdim=True)
        return (difference.abs() if self.norm == "l1" else difference.square()).mean()
