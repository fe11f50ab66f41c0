"""What a network costs to run: the multiplications of one image."""

from typing import Any

import torch
from torch import Tensor, nn

from dfkd.models.features.taps import run_network


@torch.no_grad()
def multiplications(module: nn.Module, example: Tensor) -> int:
    """Those of convolutions and linear layers for one image [1, channels, height, width].

    Normalizations, activations, pooling and the products within an attention are not counted.
    """
    counted = 0

    def count(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal counted
        for weight in layer.parameters(recurse=False):
            if weight.ndim > 1:  # each output is a sum over all but the first dimension
                counted += output.numel() * (weight.numel() // len(weight))

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    handles = [layer.register_forward_hook(count) for layer in module.modules() if isinstance(layer, kinds)]
    training = module.training
    try:
        run_network(module.eval(), example)
    finally:
        module.train(training)
        for handle in handles:
            handle.remove()
    return counted
