"""Knowledge review: each stage of the teacher teaches the student's same stage and all deeper ones."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.distill import align
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.paper import Paper

_LEVELS = (4, 2, 1)


class ReviewKD(Loss):
    """The teacher's map of every stage, from the student's map of that stage fused with its deeper ones.

        fused = x a_1 + y a_2
        sum over stages of HCL(conv(fused), t)
        HCL = weighted mean of the mean squared differences at full size, 4x4, 2x2 and 1x1

    An attention-based fusion (ABF) goes from the student's deepest stage to its shallowest. All maps are [batch,
    channels, height, width]. x is the stage's map after a 1x1 convolution and batch normalization. y comes from the
    deeper stages, resized to x. A 1x1 convolution of both makes the attention maps a_1 and a_2, between 0 and 1. The
    fused map goes on to the next stage. A 3x3 convolution and batch normalization also bring it to the teacher's width,
    at the teacher's resolution, for the loss.

    HCL is the hierarchical context loss. It averages the maps to each of these sizes that is smaller than the map. Each
    size that is used has half the weight of the one before. The weights are divided by their sum. The loss is 0 if
    these maps equal the teacher's.

    Two choices are those of the authors' code (arXiv 2104.09044): the width within the fusion (the student's deepest,
    at most 512), and what goes on to the next stage. That code also reviews the pooled last feature, a map of one
    pixel, before the deepest stage. `last` does so here. That code takes the teacher's maps before the activation. It
    raises the weight from 0 over the first 20 of 240 epochs. This is not done here: the learning rate rises slowly, and
    a loss does not know the length of the run. `weight` is that of most of its CIFAR-100 scripts (they have 0.6 to 8).

    Raises: RequestError for features of another shape, or, with `last`, for a batch of one.
    """

    family = "features"
    per_image = True
    paper = Paper("Distilling knowledge via knowledge review", 2021, "2104.09044")
    taps: tuple[str, ...] = ("stage",)
    weight = 5.0

    def __init__(self, last: bool = False) -> None:
        super().__init__()
        if last:
            self.taps = ("stage", "last")
        self.fusions = nn.ModuleList()

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """Build a fusion for every stage, with weights from torch's random state."""
        pairs = self._pairs(student, teacher)
        middle = min(512, pairs[-1][0].shape[1])
        for depth, (ours, theirs) in enumerate(pairs, start=1):
            self.fusions.append(_Fusion(ours.shape[1], middle, theirs.shape[1], depth == len(pairs)))
        self.to(student.logits.device)

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        total = student.logits.new_zeros(())
        pairs = self._pairs(student, teacher)
        deeper: Tensor | None = None
        for fusion, (ours, theirs) in zip(reversed(self.fusions), reversed(pairs), strict=True):
            with align.precision_of(ours):
                reviewed, deeper = fusion(ours, deeper, theirs.shape[2:])
            total = total + _hierarchical(align.full(reviewed) - align.full(theirs))
        return total

    def _pairs(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        """Return the maps of every stage and, with `last`, the last features as maps of one pixel."""
        pairs = align.map_pairs("stage", student, teacher)
        if "last" in self.taps:
            ours, theirs = align.last_pair(student, teacher)
            pairs.append((ours[:, :, None, None], theirs[:, :, None, None]))
        return pairs


class _Fusion(nn.Module):
    """Attention-based fusion of a stage's map with the fused map of the deeper stages."""

    def __init__(self, width: int, middle: int, out: int, deepest: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(width, middle, 1, bias=False), align.BatchNorm(middle))
        self.attend = None if deepest else nn.Conv2d(2 * middle, 2, 1)
        self.leave = nn.Sequential(nn.Conv2d(middle, out, 3, padding=1, bias=False), align.BatchNorm(out))

    def forward(
        self, ours: Float[Tensor, "batch width h w"], deeper: Tensor | None, size: torch.Size
    ) -> tuple[Float[Tensor, "batch out _ _"], Float[Tensor, "batch middle _ _"]]:
        """Return the map for the loss, and the fused map for the next stage, both at the resolution `size`."""
        x = self.enter(ours)
        if self.attend is not None and deeper is not None:
            y = _resized(deeper, x.shape[2:])
            a = self.attend(torch.cat([x, y], dim=1)).sigmoid()
            x = x * a[:, :1] + y * a[:, 1:]
        x = _resized(x, size)
        return self.leave(x), x


def _resized(x: Tensor, size: torch.Size) -> Tensor:
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="nearest")


def _hierarchical(gap: Float[Tensor, "batch channels h w"]) -> Float[Tensor, ""]:
    """Compute the hierarchical context loss of a difference of maps.

    Averaging is linear, so the difference is averaged instead of both maps.
    """
    total, weight, weights = gap.square().mean(), 1.0, 1.0
    for level in _LEVELS:
        if level < min(gap.shape[2:]):
            weight /= 2
            weights += weight
            total = total + weight * F.adaptive_avg_pool2d(gap, level).square().mean()
    return total / weights
