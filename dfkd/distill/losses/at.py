"""Attention transfer: the spatial distribution of each stage's activations."""

import torch
from jaxtyping import Float
from torch import Tensor

from dfkd.distill import align
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.limits import check_at_least
from dfkd.system.paper import Paper


class AT(Loss):
    """The attention maps of every stage: the energy of all channels at each pixel.

        sum over stages of ||Q_s - Q_t||_2 / (h w)
        Q = sum over channels of |A|^p, flattened, divided by its L2 norm

    A is a stage's last map [batch, channels, h, w]. Indices s and t are student and teacher. The value is averaged over
    the batch. This is the activation-based form of the paper (arXiv 1612.03928), with `p` = 2. Maps of different
    resolution are average-pooled to the smaller one before they are normalized.

    The paper's formula is beta/2 times the norm, not squared. Its beta is 1000 divided by the number of elements of the
    attention map and by the batch size. Here `weight` is therefore 500, and the loss itself divides. The authors' code
    and later code take the squared norm with beta = 1000 without the factor 1/2. That is `at:1000,squared=true`.

    Raises: RequestError unless p >= 1, and for a stage that is not a map [batch, channels, height, width].
    """

    family = "features"
    per_image = True
    paper = Paper(
        "Paying more attention to attention: Improving the performance of "
        "convolutional neural networks via attention transfer",
        2016,
        "1612.03928",
    )
    taps = ("stage",)
    weight = 500.0

    def __init__(self, p: float = 2.0, squared: bool = False) -> None:
        super().__init__()
        check_at_least(1, p=p)
        self.p, self.squared = p, squared

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        total = student.logits.new_zeros(())
        for pair in align.map_pairs("stage", student, teacher):
            ours, theirs = (align.unit(q.flatten(1)) for q in align.same_size(*map(self._attention, pair)))
            gap = ours - theirs
            # vector_norm has gradient 0 at 0; the gradient of a square root would be infinite
            distance = gap.square().sum(dim=1) if self.squared else torch.linalg.vector_norm(gap, dim=1)
            total = total + distance.mean() / gap.shape[1]
        return total

    def _attention(self, feature: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch 1 h w"]:
        feature = align.full(feature)
        powers = feature.square() if self.p == 2 else feature.abs().pow(self.p)
        return powers.sum(dim=1, keepdim=True)
