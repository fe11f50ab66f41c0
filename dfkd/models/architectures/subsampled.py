"""A convolution of single pixels that leaves pixels out: they are taken out of its input first."""

from torch import Tensor, nn
from torch.nn.functional import conv2d

BLOCK = 8
"""Channels that oneDNN takes at once."""


class Subsampled(nn.Conv2d):
    """A 1x1 convolution with a stride, computed as one without on every second pixel.

    Of fewer input channels than `BLOCK`, the gradient of the other one writes past its memory on a CPU
    (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def forward(self, x: Tensor) -> Tensor:
        """The same as with the stride."""
        return conv2d(every(x, self), self.weight, self.bias)


def every(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """The pixels that a 1x1 convolution reads."""
    return x[:, :, :: layer.stride[0], :: layer.stride[1]]


def leaves_out(layer: nn.Module) -> bool:
    """Whether it is a 1x1 convolution with a stride, which reads only some pixels."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.padding == (0, 0)
        and layer.groups == 1
    )


def safe(module: nn.Module) -> nn.Module:
    """The module, whose plain convolutions of that kind with few input channels are `Subsampled` from now on."""
    for layer in module.modules():
        if type(layer) is nn.Conv2d and leaves_out(layer) and layer.in_channels < BLOCK:
            layer.__class__ = Subsampled
    return module
