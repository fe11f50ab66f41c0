"""What the losses on outputs share: divergence, the classes other than one, the numbers that they may be given."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dfkd.errors import RequestError


def kl(p: Float[Tensor, "batch classes"], log_q: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """KL divergence from the distributions `p` to those whose logarithms are `log_q`, averaged over the batch."""
    return kl_of_each(p, log_q).mean()


def kl_of_each(p: Float[Tensor, "batch classes"], log_q: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    """The same for each of the batch."""
    # xlogy: where p = 0 it adds 0, and p * log p would be NaN
    return (torch.xlogy(p, p) - p * log_q).sum(dim=1)


def others(of: Int[Tensor, " rows"], classes: int) -> Int[Tensor, "rows others"]:
    """For every row the `classes` - 1 classes in their order, without the class that the row is `of`."""
    indices = torch.arange(classes - 1, device=of.device)
    return indices + (indices >= of[:, None])


def check_above(loss: str, floor: float | int = 0, **values: float | int) -> None:
    """Raises: RequestError for one of the `values` that is not above `floor`, or not finite."""
    for name, value in values.items():
        if not floor < value < math.inf:
            raise RequestError(f"{loss}:{name}={value:g} is not above {floor:g}{_and_finite(value)}")


def check_at_least(loss: str, floor: float | int = 0, **values: float | int) -> None:
    """Raises: RequestError for one of the `values` that is below `floor`, or not finite."""
    for name, value in values.items():
        if not floor <= value < math.inf:
            raise RequestError(f"{loss}:{name}={value:g} is not at least {floor:g}{_and_finite(value)}")


def _and_finite(value: float | int) -> str:
    return "" if math.isfinite(value) else " and finite"
