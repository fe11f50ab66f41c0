"""Compact logits for every view: all logits, or, for many classes, the largest ones and one value for the rest."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dfkd.distill.distributions import TEMPERATURE
from dfkd.models.features.outputs import half

ALL_UP_TO = 64
"""Largest number of classes for which every logit is kept."""
LARGEST = 32
"""Number of logits that are kept if there are more classes."""


def compact(logits: Float[Tensor, "rows classes"]) -> dict[str, np.ndarray]:
    """Return `logits` in float16 [rows, kept]; for many classes also `classes` [rows, kept] and `rest` [rows].

    `rest`, in float16, is the logit of each other class if all share their probability evenly. It is T log mean exp(z /
    T) over them, with the temperature T of plain `kd`. At that temperature the total probability of the rest is exact.
    At a higher temperature it is too large, at a lower one too small. The error grows with the differences among the
    rest. At temperature 1 the probability of the rest is close to 0.
    """
    classes = logits.shape[1]
    if classes <= ALL_UP_TO:
        return {"logits": half(logits).cpu().numpy()}
    values, where = logits.float().topk(LARGEST, dim=1)
    others = logits.float().scatter(1, where, -torch.inf) / TEMPERATURE
    rest = TEMPERATURE * (others.logsumexp(dim=1) - float(np.log(classes - LARGEST)))
    return {
        "logits": half(values).cpu().numpy(),
        "classes": where.cpu().numpy().astype(np.min_scalar_type(classes - 1)),
        "rest": half(rest).cpu().numpy(),
    }


def expand(kept: Mapping[str, np.ndarray], classes: int) -> Float[Tensor, "rows classes"]:
    """Return the float32 logits that `compact` has kept; all other classes get the logit `rest`."""
    values = torch.from_numpy(kept["logits"]).float()
    if "classes" not in kept:
        return values
    logits = torch.from_numpy(kept["rest"]).float()[:, None].repeat(1, classes)
    return logits.scatter_(1, torch.from_numpy(kept["classes"].astype(np.int64)), values)
