"""The residual networks for CIFAR (He et al. 2015, arXiv 1512.03385, section 4.2)."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.models.architectures.initialization import initialize
from dfkd.models.architectures.subsampled import safe

Shortcut = Literal["pad", "conv"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions. If the shape changes, the shortcut subsamples and pads with zeros ("option A").

    With `shortcut="conv"`, the shortcut is a learned 1x1 convolution without normalization ("option B"). Its initial
    weights compute the same as option A.
    """

    def __init__(self, in_planes: int, planes: int, stride: int, shortcut: Shortcut = "pad") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()  # a module, so that its input can be tapped
        self.stride, self.extra = stride, planes - in_planes
        changes = stride != 1 or planes != in_planes
        learns = shortcut == "conv" and changes
        self.shortcut = nn.Conv2d(in_planes, planes, 1, stride, bias=False) if learns else None

    def forward(self, x: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        """Compute the block's output, `stride` times smaller in height and width."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.shortcut is not None:
            return self.shortcut(x)
        if self.stride == 1 and self.extra == 0:
            return x
        before = self.extra // 2  # half of the zero channels on either side, as in the published checkpoints
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before))


class CifarResNet(nn.Module):
    """A 3x3 stem, three stages of `blocks` blocks with 1, 2 and 4 times `width` channels, mean, linear layer."""

    def __init__(self, blocks: int, width: int, num_classes: int, in_channels: int, shortcut: Shortcut = "pad") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, 1, shortcut)
        self.layer2 = _stage(width, 2 * width, blocks, 2, shortcut)
        self.layer3 = _stage(2 * width, 4 * width, blocks, 2, shortcut)
        self.linear = nn.Linear(4 * width, num_classes)
        initialize(safe(self))
        for block in self.modules():
            if isinstance(block, BasicBlock) and block.shortcut is not None:
                _pad(block.shortcut.weight)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def cifar_resnet(
    depth: int, width: int = 16, num_classes: int = 10, in_channels: int = 3, shortcut: Shortcut = "pad"
) -> CifarResNet:
    """Build the CIFAR ResNet of `depth` weighted layers (20, 32, 44, 56, 110).

    `width` is the number of channels of the first stage. With `shortcut=conv`, the shortcuts between stages are
    learned, and `distill --prune` can prune their channels.

    Raises: ValueError unless depth is 6n+2 and at least 8.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth={depth} is not 6n+2 (8, 14, 20, 32, 44, 56, 110)")
    return CifarResNet((depth - 2) // 6, width, num_classes, in_channels, shortcut)


@torch.no_grad()
def _pad(weight: Tensor) -> None:
    """Initialize a 1x1 convolution so that it pads the channels with zeros on both sides."""
    planes, in_planes = weight.shape[:2]
    before = (planes - in_planes) // 2
    weight.zero_()
    weight[before : before + in_planes, :, 0, 0] = torch.eye(in_planes)


def _stage(in_planes: int, planes: int, blocks: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    rest = [BasicBlock(planes, planes, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(in_planes, planes, stride, shortcut), *rest)
