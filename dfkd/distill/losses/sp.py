"""Similarity-preserving: which samples of a batch resemble each other in the deepest map."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dfkd.distill import align
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.paper import Paper


class SP(Loss):
    """The similarities among the samples of a batch, in the deepest map, are the teacher's.

    || G_T - G_S ||_F^2 / b^2 with G = Q Q^T, where Q [b, channels * height * width] is the last map of the deepest
    resolution, flattened, and b the batch; G is normalised before. Each map keeps its own channels and resolution: G
    is [b, b] in any case. It is 0 at equality, and the scale of the features does not matter.

    `normalize` says how: `row` divides every row of G by its L2 norm, which is the paper's (and RepDistiller's, checked
    by its authors); `frobenius` divides G by its Frobenius norm, which circulates too and gives values about b times
    smaller. `weight`: 3000, the paper's.

    Raises: RequestError for a feature that is no map.
    """

    family = "relations"
    paper = Paper("Similarity-preserving knowledge distillation", 2019, "1907.09682")
    taps = ("stage",)
    weight = 3000.0

    def __init__(self, normalize: Literal["row", "frobenius"] = "row") -> None:
        super().__init__()
        self.normalize = normalize

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """The loss of a batch."""
        ours, theirs = align.one_stage("last", student, teacher)
        return F.mse_loss(self._similarities(ours), self._similarities(theirs))

    def _similarities(self, feature: Float[Tensor, "batch channels _ _"]) -> Float[Tensor, "batch batch"]:
        q = align.full(feature).flatten(1)
        products = q @ q.T
        if self.normalize == "row":
            return align.unit(products)
        return align.unit(products.reshape(1, -1)).reshape(products.shape)
