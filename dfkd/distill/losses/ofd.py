"""Overhaul of feature distillation: pre-activations, without what the teacher's activation takes away."""

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
    """The teacher's positive pre-activations; where they are negative, the student's are no higher.

        0             where s <= t <= 0
        (s - t)^2     elsewhere,   t = max(x, m),   m <= 0

    x is the teacher's pre-activation [batch, channels, height, width]. t is x behind the margin ReLU. m is the mean of
    the channel's negative values. s is the student's pre-activation behind a connector. The value is summed over
    channels and pixels, averaged over the batch and summed over the stages. Each stage counts half of the next deeper
    one, whose maps are about half as large. The loss is 0 where s = t.

    The halving and the weight are those of the authors' code for CIFAR-100. They compute m from the BatchNorm before
    the activation, as the expectation under a normal distribution. Ours is the mean over all batches seen, with the
    present one. It needs no BatchNorm. A channel without negative values has m = 0. The connector on the student's side
    is a 1x1 convolution and a batch normalization. Where resolutions differ, s and t are average-pooled to the smaller
    one.

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
        """Build the connectors, which are drawn from torch's random state, and margins that have seen nothing."""
        for ours, theirs in align.map_pairs("pre", student, teacher):
            self.connectors.append(align.connector(ours, theirs.shape[1]))
            self.margins.append(_Margin(theirs.shape[1]).to(ours.device))

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """The loss of a batch. Where gradients are recorded, the margins learn from it."""
        total = student.logits.new_zeros(())
        pairs = align.map_pairs("pre", student, teacher)
        for connector, margin, (ours, theirs) in zip(self.connectors, self.margins, pairs, strict=True):
            theirs = align.full(theirs)
            ours, t = align.same_size(ours, theirs.maximum(margin(theirs)))
            s = align.apply(connector, ours)
            total = total / 2 + _PartialDistance.apply(s, t) / len(s)
        return total


class _PartialDistance(torch.autograd.Function):
    """The sum of (s - t)², but 0 where s <= t <= 0; t gets no gradient.

    Arithmetic does what masks would: on a CPU a mask costs as much as ten passes over the maps.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, t: Tensor) -> Float[Tensor, ""]:
        """The gap is kept, cut off from below at 0 unless t > 0, where that floor lies below every gap."""
        gap = s - t
        floor = t.clamp_min(0).to(gap.dtype).mul_(-torch.finfo(gap.dtype).max)
        torch.maximum(gap, floor, out=gap)
        ctx.save_for_backward(gap)
        return torch.square(gap, out=floor).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, ""]) -> tuple[Tensor, None]:
        """Of s alone."""
        (gap,) = ctx.saved_tensors
        return gap * (2 * gradient), None


class _Margin(nn.Module):
    """The mean of every channel's negative values over all batches seen, as their sum and number."""

    total: Tensor
    count: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("total", "count"):  # float64: the number soon leaves what float32 counts exactly
            self.register_buffer(name, torch.zeros(channels, dtype=torch.float64))

    @torch.no_grad()
    def _with(self, x: Float[Tensor, "batch channels h w"]) -> tuple[Tensor, Tensor]:
        negative = x.clamp_max(0)
        sums = negative.sum(dim=(0, 2, 3))
        sums, signs = summed(torch.stack([sums, negative.sign_().sum(dim=(0, 2, 3))]))
        return self.total + sums, self.count - signs

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "channels 1 1"]:
        """The margins with the batch `x` in them; they are kept where gradients are recorded (not in a mere check)."""
        total, count = self._with(x)
        if torch.is_grad_enabled():
            self.total.copy_(total)
            self.count.copy_(count)
        return (total / count.clamp_min(1)).to(x.dtype)[:, None, None]
