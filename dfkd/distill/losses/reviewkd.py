"""Knowledge review: each stage of the teacher taught to the student's stages from there to the deepest."""

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
        HCL = mean squared difference at full size, 4x4, 2x2 and 1x1, with weights 1, 1/2, 1/4, 1/8

    An attention-based fusion (ABF) goes from the student's deepest stage to its shallowest. All maps are [batch,
    channels, height, width]. x is the stage's map behind a 1x1 convolution and batch normalization. y comes from the
    deeper stages, resized to it. A 1x1 convolution of both makes the attention maps a_1 and a_2, between 0 and 1. The
    fused map goes on to the next stage. It also passes a 3x3 convolution and batch normalization at the teacher's
    resolution, into the loss.

    HCL is the hierarchical context loss. It averages the maps to those sizes that are smaller than the map. The weights
    are divided by the sum of those that took part. The loss is 0 where the fused maps equal the teacher's.

    The widths within the fusion (the student's deepest, at most 512) and what goes on to the next stage are those of
    the authors' code. That code also reviews the pooled last feature, a map of one pixel, before the deepest stage.
    `last` does so here. That code takes the teacher's maps before the activation. It raises the weight from 0 over the
    first 20 of 240 epochs. This is not done here: the learning rate rises slowly, and a loss does not know how long a
    run is. The weight is that of most of its CIFAR-100 scripts (they have 0.6 to 8).

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
        """Build a fusion for every stage; they are drawn from torch's random state."""
        pairs = self._pairs(student, teacher)
        middle = min(512, pairs[-1][0].shape[1])
        for depth, (ours, theirs) in enumerate(pairs, start=1):
            self.fusions.append(_Fusion(ours.shape[1], middle, theirs.shape[1], depth == len(pairs)))
        self.to(student.logits.device)

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """The loss of a batch."""
        total = student.logits.new_zeros(())
        pairs = self._pairs(student, teacher)
        deeper: Tensor | None = None
        for fusion, (ours, theirs) in zip(reversed(self.fusions), reversed(pairs), strict=True):
            with align.precision_of(ours):
                reviewed, deeper = fusion(ours, deeper, theirs.shape[2:])
            total = total + _hierarchical(align.full(reviewed) - align.full(theirs))
        return total

    def _pairs(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        """The maps of every stage and, behind them, the last features as maps of one pixel."""
        pairs = align.map_pairs("stage", student, teacher)
        if "last" in self.taps:
            pair = student.features["last"], teacher.features["last"]
            align.check_shape("last", *pair)
            ours, theirs = (align.averaged(feature)[:, :, None, None] for feature in pair)
            pairs.append((ours, theirs))
        return pairs


class _Fusion(nn.Module):
    """Attention based fusion of a stage's map with what came from the deeper stages."""

    def __init__(self, width: int, middle: int, out: int, deepest: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(width, middle, 1, bias=False), align.BatchNorm(middle))
        self.attend = None if deepest else nn.Conv2d(2 * middle, 2, 1)
        self.leave = nn.Sequential(nn.Conv2d(middle, out, 3, padding=1, bias=False), align.BatchNorm(out))

    def forward(
        self, ours: Float[Tensor, "batch width h w"], deeper: Tensor | None, size: torch.Size
    ) -> tuple[Float[Tensor, "batch out _ _"], Float[Tensor, "batch middle _ _"]]:
        """The map for the loss, in the resolution `size`, and what goes on to the next stage."""
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
    """The hierarchical context loss of a difference of maps: averaging is linear, so it is done once for both."""
    total, weight, weights = gap.square().mean(), 1.0, 1.0
    for level in _LEVELS:
        if level < min(gap.shape[2:]):
            weight /= 2
            weights += weight
            total = total + weight * F.adaptive_avg_pool2d(gap, level).square().mean()
    return total / weights
