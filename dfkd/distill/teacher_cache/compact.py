"""Logits small enough to keep for every view: all, or of many classes the largest and one level for the rest."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dfkd.models.features.outputs import half

ALL_UP_TO = 64
"""Classes up to which every logit is kept."""
LARGEST = 32
"""Logits that are kept of more classes."""
REST_TEMPERATURE = 4.0
"""The temperature of plain `kd`, at which the rest keeps its share exactly. At 1 its share is next to nothing."""


def compact(logits: Float[Tensor, "rows classes"]) -> dict[str, np.ndarray]:
    """`logits` in float16 [rows, kept]; of many classes also `classes` [rows, kept] and `rest` in float16 [rows].

    `rest` is the logit that all other classes have if they share what is theirs evenly: T log mean exp(z / T) over
    them, with T = `REST_TEMPERATURE`. The probability of the rest as a whole is kept at that temperature; at a
    higher one it becomes too large, at a lower one too small, the more so the more the others differ.
    """
    classes = logits.shape[1]
    if classes <= ALL_UP_TO:
        return {"logits": half(logits).cpu().numpy()}
    values, where = logits.float().topk(LARGEST, dim=1)
    others = logits.float().scatter(1, where, -torch.inf) / REST_TEMPERATURE
    rest = REST_TEMPERATURE * (others.logsumexp(dim=1) - float(np.log(classes - LARGEST)))
    return {
        "logits": half(values).cpu().numpy(),
        "classes": where.cpu().numpy().astype(np.min_scalar_type(classes - 1)),
        "rest": half(rest).cpu().numpy(),
    }


def expand(kept: Mapping[str, np.ndarray], classes: int) -> Float[Tensor, "rows classes"]:
    """The logits in float32 that `compact` has kept; the rest has its level."""
    values = torch.from_numpy(kept["logits"]).float()
    if "classes" not in kept:
        return values
    logits = torch.from_numpy(kept["rest"]).float()[:, None].repeat(1, classes)
    return logits.scatter_(1, torch.from_numpy(kept["classes"].astype(np.int64)), values)
