"""Correlation congruence: a kernel of every two samples of a batch."""

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
    """The correlations of every two samples of a batch, by a kernel on the last feature, are the teacher's.

    || C_T - C_S ||_F^2 / n^2 with C_ij = k(x_i, x_j), x being the features of the tap `last` at length 1. `kernel`:
    `gaussian` is exp(-gamma |x - y|^2) by its Taylor expansion in x.y up to `order`, exp(-2 gamma) * sum over p of
    (2 gamma)^p / p! * (x.y)^p, which holds for vectors of length 1; `bilinear` is x.y. It is 0 at equality.

    Gamma 0.4 and order 2 are the paper's. Its instance congruence is `kd`; its batches with several images of a class,
    or of a cluster of classes, are `--batches`. Other definitions circulate: RepDistiller's `correlation`
    (mean over neighbours in the batch of |s_i - t_i| . |s_i+1 - t_i+1|, said there to be by the authors) has no kernel;
    torchdistill does not normalise the features, and takes the norm, not its square. Ours: no embedding. Others put
    learned layers of one width behind both networks; C is [n, n] whatever the widths, and a layer learned behind the
    teacher can make both sides constant.

    `weight`: 100, which Knowledge-Distillation-Zoo gives this very definition. The 0.003 that torchdistill's
    configuration of the paper has is for features of any length; with length 1 it leaves next to nothing of the loss.

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
        """The loss of a batch."""
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
