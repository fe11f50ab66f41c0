"""Squared or absolute error between the logits of student and teacher, without a softmax."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from dfkd.distill.align import full
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.paper import Paper


class Logits(Loss):
    """The teacher's logits, by their mean squared or mean absolute error.

        norm=l2:   mean over classes and batch of (s - t)^2
        norm=l1:   mean over classes and batch of |s - t|

    s and t are the logits [batch, classes] of student and teacher. Every class has the same weight, whatever its
    probability or rank.

    The paper (arXiv 1312.6184) trains by l2 regression on the logits. A later paper finds l2 better than the KL
    divergence (Comparing Kullback-Leibler divergence and mean squared error loss in knowledge distillation, 2021,
    https://arxiv.org/abs/2105.08919). It uses l2 alone, with `weight` 1. Both papers write the sum over classes, the
    first one with a factor of 1/2. The mean is that of the second paper's code. The l1 form is from neither paper.

    A constant added to all logits of an image carries no information. `centered` subtracts each image's mean logit
    first. Half of the centered l2 form is the limit of `kd` at high temperatures (https://arxiv.org/abs/2105.08919;
    https://arxiv.org/abs/1503.02531 assumes centered logits). The papers do not center, and neither does the default.
    The default therefore also matches the mean logit, in which the second paper sees the advantage over `kd`.
    """

    family = "outputs"
    per_image = True
    paper = Paper("Do deep nets really need to be deep?", 2013, "1312.6184")

    def __init__(self, norm: Literal["l1", "l2"] = "l2", centered: bool = False) -> None:
        super().__init__()
        self.norm, self.centered = norm, centered

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        difference = full(student.logits) - full(teacher.logits)
        if self.centered:
            difference = difference - difference.mean(dim=1, keepdim=True)
        return (difference.abs() if self.norm == "l1" else difference.square()).mean()
