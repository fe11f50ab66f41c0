"""VGG with BatchNorm (Simonyan and Zisserman 2014, arXiv 1409.1556), as used on CIFAR: one linear layer on the mean."""

from jaxtyping import Float
from torch import Tensor, nn

from dfkd.models.architectures.initialization import initialize

_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Convolutions of each stage, by depth."""


class VGG(nn.Module):
    """Five stages of 3x3 convolution, BatchNorm and ReLU, each followed by a 2x2 max-pool; mean; linear layer."""

    def __init__(self, convolutions: tuple[int, ...], num_classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        planes = in_channels
        for width, count in zip(_WIDTHS, convolutions, strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(planes, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
                planes = width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))  # a map of one pixel keeps its size, so small images work
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(planes, num_classes)
        initialize(self)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        return self.classifier(self.features(x).mean((2, 3)))


def vgg(depth: int = 16, num_classes: int = 10, in_channels: int = 3) -> VGG:
    """Build VGG-11, 13, 16 or 19 with BatchNorm for images of about 32 pixels.

    They are the paper's configurations A, B, D and E.
    Raises: ValueError for another depth.
    """
    if depth not in _CONVOLUTIONS:
        raise ValueError(f"depth={depth} is not one of {', '.join(map(str, _CONVOLUTIONS))}")
    return VGG(_CONVOLUTIONS[depth], num_classes, in_channels)
