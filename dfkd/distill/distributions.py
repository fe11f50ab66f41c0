"""What the losses on outputs share: divergence, and the classes other than one."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

TEMPERATURE = 4.0
"""By which `kd` softens the outputs where nothing else is said, and what else speaks of its target."""


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
