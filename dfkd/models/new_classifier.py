"""New classifiers: of weights for another class count, whose other layers are kept, and of a given network."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dfkd.models.features.taps import network_code
from dfkd.models.state import EXTRA, tensors_of

WEIGHT_OPTIONS = frozenset(("weights", "weights_backbone", "pretrained", "checkpoint_path"))
"""Options by which constructors load weights. They do not decide shapes."""
_TELLING = 64
"""Fewest weights whose distribution tells a new layer from a trained one."""


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


def untrained(layer: nn.Linear) -> bool:
    """Return whether the weights of a layer are zeros, or those that torch gives a new one.

    These are uniform between -b and b, with b = 1 / sqrt(inputs), so the root of their mean square is b / sqrt(3). The
    largest weight of a trained layer is more than sqrt(3) times that root. A few weights do not tell.
    """
    weight, bound = layer.weight.detach().float(), layer.in_features**-0.5
    root, largest = float(weight.square().mean().sqrt()), float(weight.abs().max())
    chance = 4 * math.sqrt(0.2 / weight.numel())  # four standard deviations of the root, relative to it
    uniform = largest <= bound * (1 + 2**-8) and abs(root * math.sqrt(3) / bound - 1) < chance  # also in bfloat16
    return largest == 0 or (uniform and weight.numel() >= _TELLING)
