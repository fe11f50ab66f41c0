"""Weights of another class count: the other layers are kept, and the classifier is new."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dfkd.models.features.taps import network_code
from dfkd.models.state import EXTRA, tensors_of

WEIGHT_OPTIONS = frozenset(("weights", "weights_backbone", "pretrained", "checkpoint_path"))
"""Options by which constructors load weights. They do not decide shapes."""


def loads_weights(options: Mapping[str, Any]) -> bool:
    """Return whether an option of the constructor loads weights."""
    return any(options[key] for key in options.keys() & WEIGHT_OPTIONS)


@torch.no_grad()
def keep_layers(module: nn.Module, trained: nn.Module) -> list[str]:
    """Copy the tensors of `trained` with equal shape into `module`, and return the names of the other layers.

    Both have one architecture and different class counts, so the other layers are the classifiers.
    """
    with network_code(trained):
        given = tensors_of(trained)
    own = tensors_of(module)
    fits = {name for name, value in own.items() if name in given and given[name].shape == value.shape}
    new = {name.rpartition(".")[0] for name in own.keys() - fits if not name.endswith(EXTRA)}
    for name in fits:
        if name.rpartition(".")[0] not in new:  # a bias may fit although its weight does not
            own[name].copy_(given[name])
    return sorted(new)
