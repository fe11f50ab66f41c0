"""A network whose weights are of another class count: its layers are kept, and those that depend on it are new."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dfkd.models.features.taps import network_code
from dfkd.models.state import EXTRA, tensors_of

WEIGHT_OPTIONS = frozenset(("weights", "weights_backbone", "pretrained", "checkpoint_path"))
"""The options with which constructors load weights. They decide no shape."""


def loads_weights(options: Mapping[str, Any]) -> bool:
    """Whether an option of the constructor loads weights."""
    return any(options[key] for key in options.keys() & WEIGHT_OPTIONS)


@torch.no_grad()
def keep_layers(module: nn.Module, trained: nn.Module) -> list[str]:
    """Copy into `module` what `trained` has in the same shape. Returns the layers that stay as `module` has them.

    Both are one architecture with different class counts, so that those layers are the classifiers.
    """
    with network_code(trained):
        given = tensors_of(trained)
    own = tensors_of(module)
    fits = {name for name, value in own.items() if name in given and given[name].shape == value.shape}
    new = {name.rpartition(".")[0] for name in own.keys() - fits if not name.endswith(EXTRA)}
    for name in fits:
        if name.rpartition(".")[0] not in new:  # a bias may fit where its weight does not
            own[name].copy_(given[name])
    return sorted(new)
