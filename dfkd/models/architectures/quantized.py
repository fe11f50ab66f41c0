"""Another network, of which every convolution and linear layer computes as in int8."""

from torch import nn


def quantized(network: str, channels: int = 3, image_size: int = 32) -> nn.Module:
    """The network of the MODEL text `network`, with folded BatchNorms and rounded weights and inputs.

    Raises: ValueError for a network without a convolution or linear layer.
    """
    from dfkd.models.fake_int8 import fake_int8
    from dfkd.models.find import MODEL  # it needs this package's list of networks

    return fake_int8(MODEL.look_up(network).build(), channels, image_size)
