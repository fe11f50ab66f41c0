"""LeNet-5 and the half LeNet-5 of data-free distillation (DAFL, Chen et al. 2019, arXiv 1904.01186).

The layers are LeCun's with ReLU and max-pooling, for images of 32 pixels. Images of 28 pixels (handwritten digits) are
padded with two zeros on each side. DAFL's code has no padding: it resizes the digits to 32 pixels.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from dfkd.models.architectures.initialization import initialize


class LeNet5(nn.Module):
    """Three 5x5 convolutions of `planes` channels, a 2x2 max-pool after each of the first two, two linear layers."""

    def __init__(self, planes: tuple[int, int, int], hidden: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, planes[0], 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(planes[0], planes[1], 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(planes[1], planes[2], 5),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(nn.Linear(planes[2], hidden), nn.ReLU(), nn.Linear(hidden, num_classes))
        initialize(self)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        if x.shape[-1] == 28:
            x = pad(x, (2, 2, 2, 2))
        return self.classifier(self.features(x).flatten(1))


def lenet5(num_classes: int = 10, in_channels: int = 1) -> LeNet5:
    """Build LeNet-5: 6, 16 and 120 channels, 84 hidden units.

    It has 61,706 parameters for ten classes of gray images.
    """
    return LeNet5((6, 16, 120), 84, num_classes, in_channels)


def lenet5_half(num_classes: int = 10, in_channels: int = 1) -> LeNet5:
    """Build LeNet-5 with half of each layer's units: 3, 8 and 60 channels, 42 hidden units.

    It has 15,738 parameters for ten classes of gray images.
    """
    return LeNet5((3, 8, 60), 42, num_classes, in_channels)
