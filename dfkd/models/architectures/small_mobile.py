"""torchvision's mobile networks for images of about 32 pixels: a stem of stride 1, and 4x4 pixels at the end."""

from jaxtyping import Float
from torch import Tensor, nn

from dfkd.models.architectures.initialization import initialize

_MOBILENET = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and stride of each stage: the paper's table 2, but stride 1 in the second stage."""
_SHUFFLENET = {
    0.5: (24, 48, 96, 192, 1024),
    1.0: (24, 116, 232, 464, 1024),
    1.5: (24, 176, 352, 704, 1024),
    2.0: (24, 244, 488, 976, 2048),
}
"""Channels of stem, stages and last layer by width: table 5 of the paper."""
_FIRES = ((64, 16, 64), (128, 16, 64), None, (128, 32, 128), (256, 32, 128), None)
_LAST_FIRES = ((256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256))
"""Input, squeezed and expanded channels (of each half) of SqueezeNet 1.1's Fire modules. None is a max-pool."""


class SqueezeNetSmall(nn.Module):
    """A 3x3 stem, torchvision's Fire modules of SqueezeNet 1.1 with three max-pools, mean, linear layer.

    The mean comes before the classifier, which is a linear layer instead of a 1x1 convolution. Without the ReLU after
    SqueezeNet's classifier, both compute the same.
    """

    def __init__(self, num_classes: int, in_channels: int, dropout: float) -> None:
        from torchvision.models.squeezenet import Fire  # takes seconds to import

        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, 64, 3, padding=1), nn.ReLU(inplace=True), _pool()]
        for fire in (*_FIRES, *_LAST_FIRES):
            layers.append(_pool() if fire is None else Fire(fire[0], fire[1], fire[2], fire[2]))
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(512, num_classes)
        initialize(self)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        logits: Tensor = self.classifier(self.dropout(self.features(x).mean((2, 3))))
        return logits


def mobilenet_v2_small(
    width: float = 1.0, num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0
) -> nn.Module:
    """Build MobileNetV2 (arXiv 1801.04381) for images of about 32 pixels; `width` scales its channels.

    Raises: ValueError unless width is above 0.
    """
    from torchvision.models.mobilenetv2 import MobileNetV2

    if not width > 0:
        raise ValueError(f"width={width} is not above 0")
    setting = [[*stage] for stage in _MOBILENET]
    network = MobileNetV2(num_classes, width, setting, dropout=dropout)
    network.features[0][0] = _stem(in_channels, network.features[0][0].out_channels)
    return network


def shufflenet_v2_small(width: float = 1.0, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Build ShuffleNetV2 (arXiv 1807.11164) for images of about 32 pixels, in one of the paper's widths.

    The network has no max-pool.
    Raises: ValueError for another width.
    """
    from torchvision.models.shufflenetv2 import ShuffleNetV2

    if width not in _SHUFFLENET:
        raise ValueError(f"width={width} is not one of {', '.join(map(str, _SHUFFLENET))}")
    network = ShuffleNetV2([4, 8, 4], [*_SHUFFLENET[width]], num_classes)
    network.conv1[0] = _stem(in_channels, network.conv1[0].out_channels)
    network.maxpool = nn.Identity()
    return network


def squeezenet_small(num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0) -> nn.Module:
    """Build SqueezeNet 1.1 (arXiv 1602.07360) for images of about 32 pixels. The network has no BatchNorm."""
    return SqueezeNetSmall(num_classes, in_channels, dropout)


def _stem(in_channels: int, channels: int) -> nn.Conv2d:
    layer = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    initialize(layer)
    return layer


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, 2, padding=1)  # padded: a map of one pixel keeps its size, so small images work
