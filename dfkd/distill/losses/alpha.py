"""The larger of two alpha-divergences: one punishes overconfidence of the student, the other underconfidence."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from dfkd.distill.align import full
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError
from dfkd.system.limits import check_above
from dfkd.system.paper import Paper

LIMIT = 1e-3
"""Distance from 0 or 1 within which an alpha is treated as 0 or 1.

Closer than this, the formula's denominator is lost in rounding."""


class Alpha(Loss):
    """The teacher's class probabilities, by the larger of two alpha-divergences for each image.

        max(D(alpha_minus), D(alpha_plus))
        D(alpha) = sum over classes of q * ((p / q)^alpha - 1) / (alpha * (alpha - 1))

    p and q are the probabilities [batch, classes] of teacher and student, at temperature 1. The maximum is taken for
    each image and averaged over the batch.

    - The limit at alpha 1 is KL(p || q). It is large if the student gives too little probability to a class that the
      teacher considers likely.
    - The limit at alpha 0 is KL(q || p).
    - At alpha -1, D is half the sum of q^2 / p, minus 1/2. It is large if the student gives a class too much
      probability.

    `alpha_minus`, `alpha_plus` and `clip` have the values of the paper (arXiv 2102.07954). `weight` is also the
    paper's: its students learn from the teacher alone.

    Clipping follows the authors' code. w = min((p / q)^alpha, `clip`) is the clipped importance ratio.

        value:      D(alpha) with w in place of (p / q)^alpha
        gradient:   -sum over classes of q * (w / alpha) * grad log q, with q and w as constants

    The loss compares the two values and takes the larger one. The gradient is not the derivative of that value. Without
    the clip, the gradient is the derivative of the divergence. With the clip, it is the gradient of another divergence,
    which is linear in q beyond the clip. The clip thus bounds the contribution of each class. At alpha 1, w / alpha is
    p / q and is not clipped: its product with q is p, as in cross-entropy. At alpha 0, w / alpha is log min(p / q,
    `clip`). For alphas above 1, the clipped value can be negative.

    Raises: RequestError unless alpha_minus <= alpha_plus and clip > 1. At clip 1 the teacher itself would be clipped.
    """

    family = "outputs"
    per_image = True
    paper = Paper("AlphaNet: improved training of supernets with alpha-divergence", 2021, "2102.07954")

    def __init__(self, alpha_minus: float = -1.0, alpha_plus: float = 1.0, clip: float = 5.0) -> None:
        super().__init__()
        check_above(1, clip=clip)
        if not -math.inf < alpha_minus <= alpha_plus < math.inf:
            raise RequestError(f"alpha_minus={alpha_minus:g} is not at most alpha_plus={alpha_plus:g} and finite")
        self.alphas, self.clip = (alpha_minus, alpha_plus), clip

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        log_q, log_p = full(student.logits).log_softmax(dim=1), full(teacher.logits).log_softmax(dim=1)
        constant = log_q.detach()
        (minus, slope_minus), (plus, slope_plus) = (self._divergence(constant, log_p, alpha) for alpha in self.alphas)
        left = minus > plus
        # the value is exactly 0; the gradient is that of sum slope * log q, with slope as a constant
        gradient = (torch.where(left[:, None], slope_minus, slope_plus) * (log_q - constant)).sum(dim=1)
        return (torch.where(left, minus, plus) + gradient).mean()

    def _divergence(
        self, log_q: Float[Tensor, "batch classes"], log_p: Float[Tensor, "batch classes"], alpha: float
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch classes"]]:
        """Return each image's clipped divergence, and the factors of grad log q up to a multiple of q.

        A multiple of q adds nothing: the sum of q * grad log q is 0.
        """
        q, log_ratio = log_q.exp(), log_p - log_q
        if abs(alpha - 1) < LIMIT:
            p = log_p.exp()
            return (p * log_ratio).sum(dim=1), -p
        if abs(alpha) < LIMIT:
            clipped = q * log_ratio.clamp_max(math.log(self.clip))
            return -clipped.sum(dim=1), -clipped
        # clamp before the exponential, which would overflow; expm1 avoids cancellation at small alphas
        clipped = q * (alpha * log_ratio).clamp_max(math.log(self.clip)).expm1()
        return clipped.sum(dim=1) / (alpha * (alpha - 1)), -clipped / alpha
