"""The cost of running a network: multiplications for one image."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.models.features.taps import modes_kept, run_network


@torch.no_grad()
def multiplications(module: nn.Module, example: Tensor) -> int:
    """Count the multiplications of convolutions and linear layers for one image [1, channels, height, width].

    Normalizations, activations, pooling and the matrix products within attention are not counted.
    """
    counted = 0

    def count(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal counted
        for weight in layer.parameters(recurse=False):
            if weight.ndim > 1:  # each output value is a sum over all dimensions but the first
                counted += output.numel() * (weight.numel() // len(weight))

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    with modes_kept(module.modules()), ExitStack() as hooks:
        for layer in module.modules():
            if isinstance(layer, kinds):
                hooks.enter_context(layer.register_forward_hook(count))
        run_network(module.eval(), example)
    return counted
