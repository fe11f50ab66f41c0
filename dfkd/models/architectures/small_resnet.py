"""torchvision's residual networks for small images: a 3x3 stem of stride 1 and no max-pool.

`resnet34_small` -> `resnet18_small` is the usual pair of teacher and student in data-free distillation on CIFAR.
"""

from collections.abc import Sequence

from torch import nn

from dfkd.models.architectures.initialization import initialize


def resnet18_small(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Build ResNet-18 (arXiv 1512.03385) for images of about 32 pixels."""
    return _small("BasicBlock", (2, 2, 2, 2), num_classes, in_channels)


def resnet34_small(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Build ResNet-34 (arXiv 1512.03385) for images of about 32 pixels."""
    return _small("BasicBlock", (3, 4, 6, 3), num_classes, in_channels)


def resnet50_small(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Build ResNet-50 (arXiv 1512.03385) for images of about 32 pixels."""
    return _small("Bottleneck", (3, 4, 6, 3), num_classes, in_channels)


def _small(block: str, layers: Sequence[int], num_classes: int, in_channels: int) -> nn.Module:
    from torchvision.models import resnet  # takes seconds to import

    network = resnet.ResNet(getattr(resnet, block), list(layers), num_classes=num_classes)
    network.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    initialize(network)
    return network
