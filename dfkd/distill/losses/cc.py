"""Correlation congruence: a kernel between every two samples of a batch."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dfkd.distill import align
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.limits import check_above, check_at_least
from dfkd.system.paper import Paper


class CC(Loss):
    """The correlations of every two samples of a batch, by a kernel on the last feature.

        ||C_t - C_s||_F^2 / n^2,   C_ij = k(x_i, x_j)

        kernel=gaussian:   exp(-2 gamma) * sum over p <= order of (2 gamma)^p / p! * (x . y)^p
        kernel=bilinear:   x . y

    x are the features of the tap `last` [batch, width], divided by their length; n is the batch size. `gaussian` is the
    Taylor expansion of exp(-gamma |x - y|^2) in x . y, up to `order`. It holds for vectors of length 1. The loss is 0
    at equality.

    `gamma` 0.4 and `order` 2 are those of the paper (arXiv 1904.01802). Its instance congruence is `kd`. Its batches
    with several images of a class, or of a cluster of classes, are `--batches`. Other definitions exist:

    - RepDistiller's `correlation` has no kernel. It is the mean over neighbors in the batch of |s_i - t_i| . |s_i+1 -
      t_i+1|. RepDistiller attributes it to the authors.
    - torchdistill does not normalize the features. It takes the norm, not its square.
    - Others put learned layers of one width behind both networks. Ours has none. C is [n, n] for all widths, and a
      learned layer behind the teacher can make both sides constant.

    `weight` 100 is that of Knowledge-Distillation-Zoo for this definition. The 0.003 of torchdistill's configuration of
    the paper is for features of any length. With length 1 it would make the loss negligible.

    Raises: RequestError unless gamma > 0 and order >= 1.
    """

    family = "relations"
    paper = Paper("Correlation congruence for knowledge distillation", 2019, "1904.01802")
    taps = ("last",)
    weight = 100.0

    def __init__(
        self, kernel: Literal["gaussian", "bilinear"] = "gaussian", gamma: float = 0.4, order: int = 2
    ) -> None:
        super().__init__()
        check_above(gamma=gamma)
        check_at_least(1, order=order)
        self.kernel, self.gamma, self.order = kernel, gamma, order

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        ours, theirs = (self._correlations(align.unit(align.vectors(x))) for x in (student, teacher))
        return F.mse_loss(ours, theirs)

    def _correlations(self, x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch batch"]:
        products = x @ x.T
        if self.kernel == "bilinear":
            return products
        scaled = 2 * self.gamma * products
        term, total = torch.ones_like(scaled), torch.ones_like(scaled)
        for p in range(1, self.order + 1):
            term = term * scaled / p
            total = total + term
        return total * math.exp(-2 * self.gamma)
