"""How the networks of this package begin."""

from torch import nn


def initialize(module: nn.Module) -> None:
    """He's normal initialization by fan-out for every convolution (arXiv 1502.01852); biases begin at 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
