"""Initialization of the networks of this package."""

from torch import nn


def initialize(module: nn.Module) -> None:
    """Initialize convolutions with He's normal distribution by fan-out (arXiv 1502.01852), and their biases with 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
