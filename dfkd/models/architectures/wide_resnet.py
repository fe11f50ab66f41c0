"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv 1605.07146)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.models.architectures.initialization import initialize


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and ReLU, with dropout between them.

    If the shape changes, the shortcut is a 1x1 convolution.
    """

    def __init__(self, in_planes: int, planes: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        changes = stride != 1 or in_planes != planes
        self.shortcut = nn.Conv2d(in_planes, planes, 1, stride, bias=False) if changes else None

    def forward(self, x: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        """Compute the block's output, `stride` times smaller in height and width."""
        active = F.relu(self.bn1(x))
        out = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(active)))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """A 3x3 stem of 16 channels, stages of 16, 32 and 64 times `width` channels, BatchNorm, mean, linear layer."""

    def __init__(self, blocks: int, width: int, num_classes: int, in_channels: int, dropout: float) -> None:
        super().__init__()
        planes = (16, 16 * width, 32 * width, 64 * width)
        self.conv1 = nn.Conv2d(in_channels, planes[0], 3, padding=1, bias=False)
        self.layer1 = _stage(planes[0], planes[1], blocks, 1, dropout)
        self.layer2 = _stage(planes[1], planes[2], blocks, 2, dropout)
        self.layer3 = _stage(planes[2], planes[3], blocks, 2, dropout)
        self.bn = nn.BatchNorm2d(planes[3])
        self.linear = nn.Linear(planes[3], num_classes)
        initialize(self)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.linear(F.relu(self.bn(x)).mean((2, 3)))


def wide_resnet(
    depth: int, width: int, num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0
) -> WideResNet:
    """Build the paper's "WRN-depth-width", such as 16-1, 40-2 or 28-10.

    Raises: ValueError unless depth is 6n+4 and at least 10.
    """
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth={depth} is not 6n+4 (10, 16, 22, 28, 40)")
    return WideResNet((depth - 4) // 6, width, num_classes, in_channels, dropout)


def _stage(in_planes: int, planes: int, blocks: int, stride: int, dropout: float) -> nn.Sequential:
    rest = [WideBlock(planes, planes, 1, dropout) for _ in range(blocks - 1)]
    return nn.Sequential(WideBlock(in_planes, planes, stride, dropout), *rest)
