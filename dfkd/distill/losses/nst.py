"""Neuron selectivity transfer: the distribution of the channels' activation patterns."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from dfkd.distill import align
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.paper import Paper


class NST(Loss):
    """Squared maximum mean discrepancy between the channels of teacher and student over the pixels.

        mean over i, j of k(x_i, x_j) + k(y_i, y_j) - 2 k(x_i, y_j)

        kernel=poly:       (x . y)^2
        kernel=linear:     x . y
        kernel=gaussian:   exp(-|x - y|^2 / (2 s^2)),   s^2 = mean of |x - y|^2

    x_1 ... x_C are the channels of the teacher's map [batch, C, height, width], and y_1 ... y_D those of the student's.
    Each is a vector over the pixels, divided by its L2 norm. The value is averaged over the batch. Widths may differ.
    Maps of different resolution are average-pooled to the smaller one. A channel of zeros stays zero.

    `poly` is the best kernel of the paper (arXiv 1707.01219). Ours: s^2 is the mean over one image's pairs of a
    teacher's and a student's channel, and gets no gradient. `stage` is the last one by default, as in the authors'
    code. Well-known public code sums over all stages. `weight` 50 is that of both, for `poly`.

    Raises: RequestError for a stage that does not exist, or that is not a map [batch, channels, height, width].
    """

    family = "features"
    per_image = True
    paper = Paper("Like what you like: Knowledge distill via neuron selectivity transfer", 2017, "1707.01219")
    taps = ("stage",)
    weight = 50.0

    def __init__(self, kernel: Literal["poly", "linear", "gaussian"] = "poly", stage: align.Stage = "last") -> None:
        super().__init__()
        self.kernel, self.stage = kernel, stage

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        y, x = map(_neurons, align.same_size(*align.one_stage(self.stage, student, teacher)))
        if self.kernel == "linear":  # the mean of the linear kernel is the dot product of the means
            return (x.mean(dim=1) - y.mean(dim=1)).square().sum(dim=1).mean()
        if self.kernel == "poly" and x.shape[2] ** 2 < x.shape[1] * y.shape[1]:
            # the same value from the pixels' Gram matrices, which are smaller if there are more channels than pixels
            gram_x, gram_y = (z.transpose(1, 2) @ z / z.shape[1] for z in (x, y))
            return (gram_x - gram_y).square().sum(dim=(1, 2)).mean()
        dots = {"xx": x @ x.transpose(1, 2), "yy": y @ y.transpose(1, 2), "xy": x @ y.transpose(1, 2)}
        kernel = _poly(dots) if self.kernel == "poly" else _gaussian(x, y, dots)
        mean = {pair: values.mean(dim=(1, 2)) for pair, values in kernel.items()}
        return (mean["xx"] + mean["yy"] - 2 * mean["xy"]).mean()


def _neurons(feature: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels pixels"]:
    """Return every channel of every image as a vector of length 1."""
    maps = align.full(feature).flatten(2)
    return align.unit(maps.flatten(0, 1)).view_as(maps)


def _poly(dots: dict[str, Tensor]) -> dict[str, Tensor]:
    return {pair: values.square() for pair, values in dots.items()}


def _gaussian(
    x: Float[Tensor, "batch teacher_channels pixels"],
    y: Float[Tensor, "batch student_channels pixels"],
    dots: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Compute the Gaussian kernel of every pair of channels from the dot products."""
    squares = {"x": x.square().sum(dim=2), "y": y.square().sum(dim=2)}
    distances = {ab: squares[ab[0]][:, :, None] + squares[ab[1]][:, None, :] - 2 * dot for ab, dot in dots.items()}
    bandwidth = distances["xy"].detach().mean(dim=(1, 2), keepdim=True)
    # the floor is larger than the rounding error of a distance of 0
    return {ab: (-distance / (2 * bandwidth.clamp_min(1e-5))).exp() for ab, distance in distances.items()}
