"""Filter grafting between students: what a layer of one has learned little of is taken from another one."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dfkd.models.state import tensors_of
from dfkd.system.errors import RequestError

AMOUNT, STEEPNESS, BINS = 0.4, 500.0, 10
"""The authors' A and c, and the bins of their entropy."""


def check(every: int, peers: int) -> None:
    """Refuse what can be refused before anything is opened. Raises: RequestError."""
    if every and not peers:
        raise RequestError(
            f"--graft {every} takes filters from other students, and there is none; name one with "
            "--also '--student-seed 1 --out run-2'"
        )


def entropy(filters: Tensor) -> Tensor:
    """Of a layer's weights in nats: their histogram has `BINS` bins of equal width, from the least to the greatest."""
    values = filters.detach().double().flatten()
    low, high = values.min(), values.max()
    bins = ((values - low) / (high - low).clamp_min(1e-300) * BINS).long().clamp_max(BINS - 1)
    share = torch.bincount(bins, minlength=BINS).double() / len(values)
    return -torch.xlogy(share, share).sum()


def share(ours: Tensor, theirs: Tensor) -> float:
    """Of a layer, the share that stays: A / pi * arctan(c * (H(ours) - H(theirs))) + 1/2, with H the `entropy`.

    The paper prints A * arctan(...) + 1/2. The authors' code divides by pi, which keeps the share in [0.3, 0.7].
    """
    return AMOUNT / math.pi * math.atan(STEEPNESS * float(entropy(ours) - entropy(theirs))) + 0.5


@torch.no_grad()
def graft(students: Sequence[nn.Module]) -> None:
    """Mix each student with the one before it, layer by layer; the first one with the last (arXiv 2001.05868).

    W becomes a W + (1 - a) V for the weights V of the other one, where a is the `share` of the convolution. What comes
    between it and the next one, such as its BatchNorm, is mixed by the same share, as in the authors' code; what
    comes before the first one stays. All are mixed as they were before.
    """
    before = [{name: value.clone() for name, value in tensors_of(student).items()} for student in students]
    for number, student in enumerate(students):
        theirs, kept = before[number - 1], 1.0
        for name, value in tensors_of(student).items():
            if value.ndim == 4:
                kept = share(before[number][name], theirs[name])
            if value.is_floating_point():
                value.copy_(kept * before[number][name] + (1 - kept) * theirs[name])


def grafts_with(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two students have the same layers, some of them convolutions."""
    shapes = [{name: value.shape for name, value in state.items()} for state in (one, other)]
    return shapes[0] == shapes[1] and any(len(shape) == 4 for shape in shapes[0].values())
