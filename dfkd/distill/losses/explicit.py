"""Explicit features: L1 distance after the first BatchNorm and before the last linear layer."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.distill import align
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.paper import Paper


class Explicit(Loss):
    """The features of two taps, by their mean absolute difference.

        mean |s - t| at `first` + mean |s - t| at `last`

    s and t are features of student and teacher, [batch, width] or [batch, channels, height, width]. `first` is the
    output of the first BatchNorm layer, before its activation. `last` is the input of the last linear layer.

    The paper (arXiv 2302.08771) describes the two taps and the L1 norm. Ours:

    - The mean is over elements.
    - If widths differ, the student's side has a learned projection: a 1x1 convolution, or a linear layer.
    - Maps of different resolution are average-pooled to the smaller one. If only one is a map, it is averaged over its
      pixels.

    Raises: RequestError for features that are neither [batch, width] nor [batch, channels, height, width].
    """

    family = "features"
    per_image = True
    paper = Paper("Explicit and implicit knowledge distillation via unlabeled data", 2023, "2302.08771")
    taps = ("first", "last")

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleDict()

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """Build the projections from a batch of features, with weights from torch's random state."""
        for tap in self.taps:
            ours, theirs = _aligned(student.features[tap], teacher.features[tap], tap)
            self.projections[tap] = align.projection(ours, theirs.shape[1], bias=ours.ndim == 2)

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        total = student.logits.new_zeros(())
        for tap in self.taps:
            ours, theirs = _aligned(student.features[tap], teacher.features[tap], tap)
            total = total + F.l1_loss(align.apply(self.projections[tap], ours), align.full(theirs))
        return total


def _aligned(ours: Tensor, theirs: Tensor, tap: str) -> tuple[Tensor, Tensor]:
    """Return the two features at one resolution; channels may still differ."""
    align.check_shape(tap, ours, theirs)
    if ours.ndim != theirs.ndim:
        return align.averaged(ours), align.averaged(theirs)
    return align.same_size(ours, theirs) if ours.ndim == 4 else (ours, theirs)
