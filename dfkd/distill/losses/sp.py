"""Similarity-preserving distillation: similarities among the samples of a batch, in the deepest map."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dfkd.distill import align
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.paper import Paper


class SP(Loss):
    """The similarities among the samples of a batch, in the deepest map.

        ||G_t - G_s||_F^2 / b^2,   G = Q Q^T, normalized

    Q is the last map of the deepest resolution, flattened to [b, channels * height * width]; b is the batch size. Each
    network keeps its own channels and resolution, because G is always [b, b]. The loss is 0 at equality. The scale of
    the features does not matter.

    `normalize=row` divides every row of G by its L2 norm. This is the form of the paper (arXiv 1907.09682), and of
    RepDistiller, which its authors checked. `normalize=frobenius` divides G by its Frobenius norm. It is also in use,
    with values about b times smaller. `weight` 3000 is the paper's.

    Raises: RequestError for a feature that is not a map.
    """

    family = "relations"
    paper = Paper("Similarity-preserving knowledge distillation", 2019, "1907.09682")
    taps = ("stage",)
    weight = 3000.0

    def __init__(self, normalize: Literal["row", "frobenius"] = "row") -> None:
        super().__init__()
        self.normalize = normalize

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        ours, theirs = align.one_stage("last", student, teacher)
        return F.mse_loss(self._similarities(ours), self._similarities(theirs))

    def _similarities(self, feature: Float[Tensor, "batch channels _ _"]) -> Float[Tensor, "batch batch"]:
        q = align.full(feature).flatten(1)
        products = q @ q.T
        if self.normalize == "row":
            return align.unit(products)
        return align.unit(products.reshape(1, -1)).reshape(products.shape)
