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
    """The teacher's distribution, by whichever of two alpha-divergences is larger on an image.

    max(D of `alpha_minus`, D of `alpha_plus`) per image, averaged over the batch, where, with p the teacher's and q the
    student's probabilities (temperature 1), D = sum_k q_k * ((p_k / q_k)^alpha - 1) / (alpha * (alpha - 1)). Its limits
    are KL(p || q) at alpha 1, which a student cannot escape that gives a class of the teacher's too little, and KL(q ||
    p) at alpha 0; alpha -1 is half the sum of q^2 / p, less 1/2, which is large where it gives a class too much.

    Alphas and `clip` are the paper's, and so is `weight`: its students learn from the teacher alone.

    Clipping is that of the authors' code. Let w = min((p / q)^alpha, `clip`), the clipped importance ratio. The two
    values that are compared, the larger of which is the loss, have w instead of (p / q)^alpha. The gradient is not
    the derivative of that value: it is -sum_k q_k * (w_k / alpha) * grad log q_k, with q and w as constants (what the
    divergence has without the clip, where it is the derivative). It is the gradient of a divergence all the same, of
    the one that goes on linearly in q beyond the clip, so that w bounds what a class can add to it. At alpha 1, w /
    alpha is p / q and not clipped, since q times it is p: cross-entropy. At alpha 0, w / alpha is log min(p / q,
    `clip`). The value at alphas above 1 can be negative once it is clipped.

    Raises: RequestError unless alpha_minus <= alpha_plus and clip > 1 (at 1 the teacher itself is clipped).
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
