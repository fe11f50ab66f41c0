"""1x1 convolutions with a stride, computed without stride on the pixels that are read."""

from torch import Tensor, nn
from torch.nn.functional import conv2d

BLOCK = 8
"""Channels that oneDNN processes at once."""


class Subsampled(nn.Conv2d):
    """A 1x1 convolution with a stride, computed without stride on the subsampled input.

    On a CPU, the gradient of the strided convolution writes past its memory if there are fewer input channels than
    `BLOCK` (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Compute the same output as the strided convolution."""
        return conv2d(every(x, self), self.weight, self.bias)


def every(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """Return the pixels that a 1x1 convolution reads."""
    return x[:, :, :: layer.stride[0], :: layer.stride[1]]


def leaves_out(layer: nn.Module) -> bool:
    """Return whether a layer is a 1x1 convolution with a stride, which reads only some pixels."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.padding == (0, 0)
        and layer.groups == 1
    )


def safe(module: nn.Module) -> nn.Module:
    """Turn strided 1x1 convolutions with few input channels into `Subsampled`, in place, and return the module."""
    for layer in module.modules():
        if type(layer) is nn.Conv2d and leaves_out(layer) and layer.in_channels < BLOCK:
            layer.__class__ = Subsampled
    return module
