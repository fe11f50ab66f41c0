"""Networks whose convolutions and linear layers compute as in int8."""

from torch import nn


def quantized(network: str, channels: int = 3, image_size: int = 32) -> nn.Module:
    """Build the network of the MODEL text `network` with folded BatchNorm layers and rounded weights and inputs.

    Raises: ValueError for a network without a convolution or linear layer.
    """
    from dfkd.models.fake_int8 import fake_int8
    from dfkd.models.find import MODEL  # imported here, because it needs this package's list of networks

    return fake_int8(MODEL.look_up(network).build(), channels, image_size)
