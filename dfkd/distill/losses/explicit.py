"""Explicit features: L1 between teacher and student where images enter and where the classifier begins."""

from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.errors import RequestError
from dfkd.outputs import Outputs


class Explicit(nn.Module):
    """Mean absolute difference of features, summed over two places.

    `first` is the output of the first BatchNorm layer, before its activation; `last` is the input of the last linear
    layer.

    Explicit and implicit knowledge distillation via unlabeled data, 2023, https://arxiv.org/abs/2302.08771, which
    describes the two places and the L1 norm. Ours: mean over elements; where widths differ, a learned projection
    on the student's side (1x1 convolution, or linear); where resolutions differ, both are average-pooled to the smaller
    one; where only one is a map, that map is averaged.

    Raises: RequestError for features that are neither [batch, width] nor [batch, channels, height, width].
    """

    taps: ClassVar[tuple[str, ...]] = ("first", "last")

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleDict()

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """Build the projections from a batch of features; they are drawn from torch's random state."""
        for tap in self.taps:
            ours, theirs = _aligned(student.features[tap], teacher.features[tap], tap)
            projection: nn.Module = nn.Identity()
            if ours.shape[1] != theirs.shape[1] and ours.ndim == 4:
                projection = nn.Conv2d(ours.shape[1], theirs.shape[1], 1, bias=False)
            elif ours.shape[1] != theirs.shape[1]:
                projection = nn.Linear(ours.shape[1], theirs.shape[1])
            self.projections[tap] = projection.to(ours.device)

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """The loss of a batch."""
        total = student.logits.new_zeros(())
        for tap in self.taps:
            ours, theirs = _aligned(student.features[tap], teacher.features[tap], tap)
            total = total + F.l1_loss(self.projections[tap](ours), theirs)
        return total


def _aligned(ours: Tensor, theirs: Tensor, tap: str) -> tuple[Tensor, Tensor]:
    """The two features in float32 at one resolution; channels may still differ."""
    for feature in (ours, theirs):
        if feature.ndim not in (2, 4):
            raise RequestError(
                f"explicit: the feature {tap!r} has shape {list(feature.shape)}, neither [batch, width] nor "
                "[batch, channels, height, width]; name another place with --student-taps or --teacher-taps"
            )
    ours, theirs = ours.float(), theirs.float()
    if ours.ndim != theirs.ndim:
        return _averaged(ours), _averaged(theirs)
    if ours.ndim == 4 and ours.shape[2:] != theirs.shape[2:]:
        size = (min(ours.shape[2], theirs.shape[2]), min(ours.shape[3], theirs.shape[3]))
        return F.adaptive_avg_pool2d(ours, size), F.adaptive_avg_pool2d(theirs, size)
    return ours, theirs


def _averaged(feature: Tensor) -> Tensor:
    return feature.mean(dim=(2, 3)) if feature.ndim == 4 else feature
