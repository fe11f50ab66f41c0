"""Overhaul of feature distillation: pre-activations of the student match those of the teacher behind a margin ReLU."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dfkd.distill import align
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.paper import Paper
from dfkd.system.shares import summed


class OFD(Loss):
    """The teacher's positive pre-activations; where the teacher's are negative, the student's are no higher.

        0             where s <= t <= 0
        (s - t)^2     elsewhere,   t = max(x, m),   m <= 0

    x is the teacher's pre-activation [batch, channels, height, width]. t is the margin ReLU of x. m is the mean of the
    channel's negative values. s is the student's pre-activation behind a connector. The value is summed over channels
    and pixels, averaged over the batch and summed over the stages. Each stage has half the weight of the next deeper
    one, whose maps are about half as large. The loss is 0 where s = t.

    The halving and `weight` are those of the authors' code for CIFAR-100 (arXiv 1904.01866). The authors compute m from
    the BatchNorm before the activation, as the expectation under a normal distribution. Ours is the mean over all
    batches so far, including the current one. It needs no BatchNorm. A channel without negative values has m = 0. The
    connector on the student's side is a 1x1 convolution and a batch normalization. If resolutions differ, s and t are
    average-pooled to the smaller one.

    Raises: RequestError for features that are not maps.
    """

    family = "features"
    per_image = True
    paper = Paper("A comprehensive overhaul of feature distillation", 2019, "1904.01866")
    taps = ("pre",)
    weight = 0.001

    def __init__(self) -> None:
        super().__init__()
        self.connectors, self.margins = nn.ModuleList(), nn.ModuleList()

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """Build the connectors, with weights from torch's random state, and the margins without any values."""
        for ours, theirs in align.map_pairs("pre", student, teacher):
            self.connectors.append(align.connector(ours, theirs.shape[1]))
            self.margins.append(_Margin(theirs.shape[1]).to(ours.device))

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch, and update the margins if gradients are recorded."""
        total = student.logits.new_zeros(())
        pairs = align.map_pairs("pre", student, teacher)
        for connector, margin, (ours, theirs) in zip(self.connectors, self.margins, pairs, strict=True):
            theirs = align.full(theirs)
            ours, t = align.same_size(ours, theirs.maximum(margin(theirs)))
            s = align.apply(connector, ours)
            total = total / 2 + _PartialDistance.apply(s, t) / len(s)
        return total


class _PartialDistance(torch.autograd.Function):
    """Sum of (s - t)², but 0 where s <= t <= 0, as an autograd function; t gets no gradient.

    Arithmetic replaces masks: on a CPU a mask costs as much as ten passes over the maps.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, t: Tensor) -> Float[Tensor, ""]:
        """Return the sum of squares of the gap s - t, where negative gaps count only if t > 0.

        For t <= 0 the lower bound of the gap is 0. For t > 0 it is below every gap and clips nothing.
        """
        gap = s - t
        floor = t.clamp_min(0).to(gap.dtype).mul_(-torch.finfo(gap.dtype).max)
        torch.maximum(gap, floor, out=gap)
        ctx.save_for_backward(gap)
        return torch.square(gap, out=floor).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, ""]) -> tuple[Tensor, None]:
        """Return the gradient of s."""
        (gap,) = ctx.saved_tensors
        return gap * (2 * gradient), None


class _Margin(nn.Module):
    """Mean of every channel's negative values over all batches so far, kept as their sum and number."""

    total: Tensor
    count: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("total", "count"):  # float64: the number soon exceeds the integers that float32 represents exactly
            self.register_buffer(name, torch.zeros(channels, dtype=torch.float64))

    @torch.no_grad()
    def _with(self, x: Float[Tensor, "batch channels h w"]) -> tuple[Tensor, Tensor]:
        negative = x.clamp_max(0)
        sums = negative.sum(dim=(0, 2, 3))
        sums, signs = summed(torch.stack([sums, negative.sign_().sum(dim=(0, 2, 3))]))
        return self.total + sums, self.count - signs

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "channels 1 1"]:
        """Return the margins including the batch `x`; save them if gradients are recorded, not in a check."""
        total, count = self._with(x)
        if torch.is_grad_enabled():
            self.total.copy_(total)
            self.count.copy_(count)
        return (total / count.clamp_min(1)).to(x.dtype)[:, None, None]
