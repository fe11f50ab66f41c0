"""Variational information distillation: how well the teacher's features can be predicted from the student's."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.distill import align
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError
from dfkd.system.limits import check_above
from dfkd.system.paper import Paper


class VID(Loss):
    """How well the teacher's features can be predicted from the student's: their Gaussian likelihood.

        log(σ_c) + (t - μ(s))² / (2 σ_c²),   σ_c² = softplus(α_c) + epsilon

    This is -log q(t | s) up to a constant. s and t are features of student and teacher, [batch, channels, height,
    width] or [batch, width]. μ is a mean network on the student's side. σ_c² is one variance for each channel of the
    teacher. Both are learned. Maximizing the likelihood maximizes a lower bound of the mutual information.

    The value is averaged over all elements of a tap and summed over the taps. The taps are the last map of every stage
    and, with `last`, the input of the last linear layer. The loss can be negative. For given variances its minimum is
    the mean of log(σ_c), at t = μ(s). With learned variances its lower bound is log(epsilon) / 2 for each tap (-5.76).

    The paper (arXiv 1904.05835) sums over elements and weights the taps. Four values are those of public code that
    credits the authors: the mean, `variance` (the initial σ_c²), `epsilon` and `weight` 1. For maps the mean network is
    three 1x1 convolutions with batch normalization and ReLU between them. They have as many channels as the teacher.
    For `last` the mean network is linear, without batch normalization. The public code has no batch normalization for
    maps either. Ours: maps of different resolution are average-pooled to the smaller one. If `last` is a map, it is
    averaged over its pixels.

    Raises: RequestError unless variance > epsilon > 0, or for features of another shape.
    """

    family = "features"
    per_image = True
    paper = Paper("Variational information distillation for knowledge transfer", 2019, "1904.05835")
    taps: tuple[str, ...] = ("stage",)

    def __init__(self, variance: float = 5.0, epsilon: float = 1e-5, last: bool = False) -> None:
        super().__init__()
        check_above(epsilon=epsilon)
        if not epsilon < variance < math.inf:
            raise RequestError(f"variance={variance:g} is not above epsilon={epsilon:g}")
        self.variance, self.epsilon = variance, epsilon
        if last:
            self.taps = ("stage", "last")
        self.means = nn.ModuleList()
        self.alphas = nn.ParameterList()

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """Build mean networks, with weights from torch's random state, and variances for every tap."""
        softplus = self.variance - self.epsilon
        alpha = softplus + math.log(-math.expm1(-softplus))  # the inverse of softplus, in a form that does not overflow
        for ours, theirs in self._tapped(student, teacher):
            width = theirs.shape[1]
            self.means.append(_regressor(ours, width) if ours.ndim == 4 else nn.Linear(ours.shape[1], width))
            self.alphas.append(nn.Parameter(torch.full((width,), alpha)))
        self.to(student.logits.device)

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        total = student.logits.new_zeros(())
        pairs = self._tapped(student, teacher)
        for mean, alpha, (ours, theirs) in zip(self.means, self.alphas, pairs, strict=True):
            gap = align.apply(mean, ours) - align.full(theirs)
            variance = F.softplus(alpha) + self.epsilon
            square = gap.square().mean(dim=[d for d in range(gap.ndim) if d != 1])
            total = total + (variance.log() + square / variance).mean() / 2
        return total

    def _tapped(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        """Return the pairs of student's and teacher's features, each pair at one resolution."""
        pairs = [align.same_size(*pair) for pair in align.map_pairs("stage", student, teacher)]
        if "last" in self.taps:
            pairs.append(align.last_pair(student, teacher))
        return pairs


def _regressor(ours: Float[Tensor, "batch channels _ _"], width: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(ours.shape[1], width, 1, bias=False), align.BatchNorm(width), nn.ReLU()),
        *(nn.Conv2d(width, width, 1, bias=False), align.BatchNorm(width), nn.ReLU()),
        nn.Conv2d(width, width, 1, bias=False),
    )
