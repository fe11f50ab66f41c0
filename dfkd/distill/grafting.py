"""Filter grafting: students exchange weights of layers in proportion to their entropy."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dfkd.models.state import tensors_of
from dfkd.system.errors import RequestError

AMOUNT, STEEPNESS, BINS = 0.4, 500.0, 10
"""Constants of the authors: A and c of `kept_share`, and the number of bins of the entropy."""


def check(every: int, peers: int) -> None:
    """Raise RequestError if grafting is requested without other students."""
    if every and not peers:
        raise RequestError(
            f"--graft {every} takes filters from other students, and there is none; name one with "
            "--also '--student-seed 1 --out run-2'"
        )


def entropy(filters: Tensor) -> Tensor:
    """Compute the entropy of a layer's weights in nats.

    It is that of a histogram with `BINS` bins of equal width between the smallest and the largest weight.
    """
    values = filters.detach().double().flatten()
    low, high = values.min(), values.max()
    bins = ((values - low) / (high - low).clamp_min(1e-300) * BINS).long().clamp_max(BINS - 1)
    shares = torch.bincount(bins, minlength=BINS).double() / len(values)
    return -torch.xlogy(shares, shares).sum()


def kept_share(ours: Tensor, theirs: Tensor) -> float:
    """Return the share of its own weights that a layer keeps.

        A / pi * arctan(c * (H(ours) - H(theirs))) + 1/2,   H the `entropy`

    The paper prints A * arctan(...) + 1/2. The authors' code divides by pi, which keeps the share in [0.3, 0.7].
    """
    return AMOUNT / math.pi * math.atan(STEEPNESS * float(entropy(ours) - entropy(theirs))) + 0.5


@torch.no_grad()
def graft(students: Sequence[nn.Module]) -> None:
    """Mix each student with the one before it, layer by layer, and the first one with the last (arXiv 2001.05868).

    Let W be the weights of a convolution, V those of the other student, and a the `kept_share`. W becomes
    a W + (1 - a) V.
    Tensors between this convolution and the next, such as those of its BatchNorm, are mixed with the same a, as in the
    authors' code. Tensors before the first convolution stay. All students are mixed from their weights before the call.
    """
    before = [{name: value.clone() for name, value in tensors_of(student).items()} for student in students]
    for number, student in enumerate(students):
        theirs, kept = before[number - 1], 1.0
        for name, value in tensors_of(student).items():
            if value.ndim == 4:
                kept = kept_share(before[number][name], theirs[name])
            if value.is_floating_point():
                value.copy_(kept * before[number][name] + (1 - kept) * theirs[name])


def grafts_with(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether two students have tensors of the same names and shapes, some of them convolutions."""
    shapes = [{name: value.shape for name, value in state.items()} for state in (one, other)]
    return shapes[0] == shapes[1] and any(len(shape) == 4 for shape in shapes[0].values())
