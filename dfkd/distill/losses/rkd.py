"""Relational knowledge distillation: distances and angles among the samples of a batch."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from dfkd.distill import align
from dfkd.distill.loss import Loss
from dfkd.distill.losses.relation import relative_distances
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError
from dfkd.system.limits import check_at_least
from dfkd.system.paper import Paper

ENTRIES = 2**21
"""Number of angles computed in one chunk: 8 MiB for each of some ten tensors.

A batch of 128 is one chunk. Larger chunks are slower."""
COINCIDENT = 1e-4
"""Distance, as a share of the mean distance, up to which two samples count as one.

The direction between them would be a rounding error."""


class RKD(Loss):
    """The distances of all pairs of samples and the angles of all triplets.

        distance * mean over pairs of huber(d_s, d_t) + angle * mean over triplets of huber(cos_s, cos_t)

    d is the Euclidean distance of two samples divided by its mean over the batch's pairs. cos is the cosine of the
    angle at sample j between i and k. Huber's delta is 1. Samples are, by `of`, features (the tap `last`, [batch,
    width]) or logits. Neither scale nor width of the features matters.

    Pairs and triplets are of distinct samples, as in the paper (arXiv 1904.05068). The paper writes sums where its
    weights are for means. The authors' code and its successors average over the full N x N and N x N x N arrays. The
    entries with equal indices are 0. Those means are thus (N - 1) / N and (N - 1)(N - 2) / N^2 times the means here.
    Their mean distance is taken over the entries that are not 0.

    Ours: an angle with a side below 1/10,000 of the mean distance counts 0. It is a rounding error, and its gradient
    has no bound. Batches of one cost 0; batches of two have no angle.

    `weight` and its parts `distance` and `angle` are the paper's for classification: 25 for distances, 50 for angles
    (25 x 2). The number of angles grows with the cube of the batch size: 2 million at 128, a billion at 1024. `angle=0`
    leaves them out. Their memory is bounded: above batches of 128 they are computed in chunks.

    Raises: RequestError for a negative `distance` or `angle`, or both 0.
    """

    family = "relations"
    paper = Paper("Relational knowledge distillation", 2019, "1904.05068")
    taps: tuple[str, ...] = ("last",)
    weight = 25.0

    def __init__(
        self, distance: float = 1.0, angle: float = 2.0, of: Literal["features", "logits"] = "features"
    ) -> None:
        super().__init__()
        check_at_least(distance=distance, angle=angle)
        if distance == angle == 0:
            raise RequestError("distance=0 and angle=0 leave nothing to learn; give one of them a weight")
        self.distance, self.angle = distance, angle
        self.taps = ("last",) if of == "features" else ()

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        if len(student.logits) < 2:
            return student.logits.sum() * 0
        ours, theirs = (align.vectors(x) if self.taps else x.logits for x in (student, teacher))
        d, target = relative_distances(ours), relative_distances(theirs)
        total = self.distance * F.huber_loss(d, target)
        if self.angle and len(ours) > 2:
            total = total + self.angle * _angles(_square(d, len(ours)), _square(target, len(ours)))
        return total


def _square(pairs: Float[Tensor, " pairs"], samples: int) -> Float[Tensor, "samples samples"]:
    """Return the symmetric matrix with a zero diagonal whose upper triangle, row by row, is `pairs`."""
    i, j = torch.triu_indices(samples, samples, 1, device=pairs.device)
    matrix = pairs.new_zeros(samples, samples).index_put((i, j), pairs)
    return matrix + matrix.T


def _angles(ours: Float[Tensor, "samples samples"], theirs: Float[Tensor, "samples samples"]) -> Float[Tensor, ""]:
    """Compute the mean Huber loss of the cosines over ordered triplets of distinct samples, from relative distances."""
    samples = len(ours)
    chunk = max(1, ENTRIES // samples**2)
    leaf = ours.detach().requires_grad_(ours.requires_grad)
    total, gradient = ours.new_zeros(()), torch.zeros_like(leaf)
    for start in range(0, samples, chunk):
        part = _at(leaf, theirs, start, min(start + chunk, samples))
        # compute the gradient of each chunk at once, so that the angles of other chunks need not stay in memory
        if leaf.requires_grad:
            gradient += torch.autograd.grad(part, leaf)[0]
        total += part.detach()
    total = total + (gradient * (ours - leaf.detach())).sum()  # adds nothing but the gradient
    return total / (samples * (samples - 1) * (samples - 2))


def _at(
    ours: Float[Tensor, "samples samples"], theirs: Float[Tensor, "samples samples"], start: int, stop: int
) -> Float[Tensor, ""]:
    """Compute the sum of the Huber losses of the cosines at the samples `start` to `stop`."""
    apart = (ours > COINCIDENT) & (theirs > COINCIDENT)
    # with equal indices both cosines are 0, or both 1: such triplets add nothing
    return F.huber_loss(_cosines(ours, apart, start, stop), _cosines(theirs, apart, start, stop), reduction="sum")


def _cosines(
    d: Float[Tensor, "samples samples"], apart: Bool[Tensor, "samples samples"], start: int, stop: int
) -> Float[Tensor, "chunk samples samples"]:
    """Compute the cosines at the samples `start` to `stop`; 0 if a side of the angle is not `apart`.

    The law of cosines needs N^3 operations; products of features need N^3 times the width. Cancellation is relative to
    the size of the triangle only.
    """
    inverse = apart / d.masked_fill(~apart, 1)
    squares, inverse = d * d, inverse[start:stop]
    doubled = squares[start:stop, :, None] + squares[start:stop, None, :] - squares
    return doubled * (inverse[:, :, None] * inverse[:, None, :]) / 2
