"""Functions that losses on outputs share: KL divergence, and the indices of all classes but one."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

TEMPERATURE = 4.0
"""Default temperature of `kd`, and of everything that approximates the target of `kd`."""


def kl(p: Float[Tensor, "batch classes"], log_q: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Compute the KL divergence from `p` to the distributions with logarithms `log_q`, averaged over the batch."""
    return kl_of_each(p, log_q).mean()


def kl_of_each(p: Float[Tensor, "batch classes"], log_q: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    """Compute the KL divergence from `p` to the distribution with logarithm `log_q`, for each image of the batch."""
    # xlogy adds 0 where p = 0; p * log p would be NaN
    return (torch.xlogy(p, p) - p * log_q).sum(dim=1)


def others(of: Int[Tensor, " rows"], classes: int) -> Int[Tensor, "rows others"]:
    """Return, for every row, the `classes` - 1 class indices in ascending order without the class `of` the row."""
    indices = torch.arange(classes - 1, device=of.device)
    return indices + (indices >= of[:, None])
