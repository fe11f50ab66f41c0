"""The larger of two alpha-divergences: one that punishes a student for too much certainty, one for too little."""

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
"""Closer than this to 0 or 1 an alpha is that number: the formula's denominator is lost in rounding there."""


class Alpha(Loss):
    """The teacher's distribution, by the larger of two alpha-divergences on each image.

        max(D(alpha_minus), D(alpha_plus))
        D(alpha) = sum over classes of q * ((p / q)^alpha - 1) / (alpha * (alpha - 1))

    p and q are the probabilities [batch, classes] of teacher and student, at temperature 1. The maximum is taken for
    each image and averaged over the batch.

    - The limit at alpha 1 is KL(p || q). It is large where the student gives a class of the teacher's too little.
    - The limit at alpha 0 is KL(q || p).
    - Alpha -1 is half the sum of q^2 / p, less 1/2. It is large where the student gives a class too much.

    The alphas and `clip` are the paper's. So is `weight`: the paper's students learn from the teacher alone.

    Clipping follows the authors' code. w = min((p / q)^alpha, `clip`) is the clipped importance ratio.

        value:      D(alpha) with w in place of (p / q)^alpha
        gradient:   -sum over classes of q * (w / alpha) * grad log q, with q and w as constants

    The loss compares the two values and takes the larger. The gradient is not the derivative of that value. Without the
    clip it is the derivative of the divergence. With the clip it is the gradient of another divergence, which continues
    linearly in q beyond the clip. So w bounds what a class can add. At alpha 1, w / alpha is p / q and not clipped: q
    times it is p, as in cross-entropy. At alpha 0, w / alpha is log min(p / q, `clip`). The value at alphas above 1 can
    be negative once it is clipped.

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
        """The loss of a batch."""
        log_q, log_p = full(student.logits).log_softmax(dim=1), full(teacher.logits).log_softmax(dim=1)
        constant = log_q.detach()
        (minus, slope_minus), (plus, slope_plus) = (self._divergence(constant, log_p, alpha) for alpha in self.alphas)
        left = minus > plus
        # a value that is exactly 0, with the gradient of sum q * slope * log q, all but the last a constant
        gradient = (torch.where(left[:, None], slope_minus, slope_plus) * (log_q - constant)).sum(dim=1)
        return (torch.where(left, minus, plus) + gradient).mean()

    def _divergence(
        self, log_q: Float[Tensor, "batch classes"], log_p: Float[Tensor, "batch classes"], alpha: float
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch classes"]]:
        """The clipped divergence of each image, and the factors of grad log q (up to a multiple of q, which adds 0)."""
        q, log_ratio = log_q.exp(), log_p - log_q
        if abs(alpha - 1) < LIMIT:
            p = log_p.exp()
            return (p * log_ratio).sum(dim=1), -p
        if abs(alpha) < LIMIT:
            clipped = q * log_ratio.clamp_max(math.log(self.clip))
            return -clipped.sum(dim=1), -clipped
        # clamped before the exponential, which would overflow; expm1, so that nothing cancels at small alphas
        clipped = q * (alpha * log_ratio).clamp_max(math.log(self.clip)).expm1()
        return clipped.sum(dim=1) / (alpha * (alpha - 1)), -clipped / alpha
