"""Pool filters (`--filter`): functions from a teacher and a part of its pool to a linear filter of the images.

A pool may be sharper, softer or more colorful than the teacher's training images. Resizing is a linear filter, so a
linear filter can compensate for a different resizing. Your own filter has the same form: `my_filter(teacher, pixels, *,
parameters...) -> Filter`. `NAME:key=value` sets its parameters. `Traits` declares the rest.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from dfkd.data.images.filter import Filter, filtered
from dfkd.models.classifier import Classifier
from dfkd.models.features.bn_statistics import require_statistics
from dfkd.system import components
from dfkd.system.console import progress
from dfkd.system.errors import RequestError
from dfkd.system.torch_optim import Adam

__all__ = ["blur", "fitted"]


@dataclass(frozen=True)
class Traits(components.Traits):
    """Declarations of a pool filter: `@Traits(rise=1.05)` above the function."""

    rise: float | None = None
    """Smallest factor by which a filter that is kept raises the teacher's Inception Score on the pool. None: any."""


_SIZES = range(1, 17, 2)
_STEPS, _BATCH, _RATE = 60, 64, 5e-3
"""Optimizer steps, batch size and learning rate.

Half of the steps give nearly the same result, twice as many none better (benchmarks/quality/LOG.md).
"""


@Traits(rise=1.05)
def fitted(teacher: Classifier, pixels: UInt8[Tensor, "images height width channels"], *, size: int = 5) -> Filter:
    """Fit a filter that matches the pool to the statistics of the teacher's BatchNorm layers.

    Adam starts from the identity, and minimizes the mean over layers and channels of KL(N(m, v) || N(m', v')). m and v
    are a batch's mean and variance, m' and v' the running statistics of the layer. DeepInversion
    (https://arxiv.org/abs/1912.08795) generates images by the same statistics. BUFR (https://arxiv.org/abs/2107.05446)
    adapts a network to new images of the same classes by the distribution of its features. Filtering the images instead
    is our own.

    Raises: RequestError for a teacher without such layers, whose layers do not run or pass no gradient, or a size that
    is not odd.
    """
    if size not in _SIZES:
        raise RequestError(f"size={size} is not odd and from 1 to {_SIZES[-1]}")
    statistics = require_statistics(teacher.model.module, "blur works")
    images = pixels.permute(0, 3, 1, 2) / 255
    learnt = _Centered(images, size)
    optimizer = Adam(learnt.parameters(), lr=_RATE, betas=(0.9, 0.99))
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    drawn = torch.Generator().manual_seed(0)  # not the global generator, which holds the student's seed
    with progress("fitting the filter", _STEPS, "steps") as bar:
        for _ in range(_STEPS):
            batch = images[torch.randint(len(images), (_BATCH,), generator=drawn)]
            view = teacher.model.preprocess.normalized(filtered(batch, *learnt()).to(teacher.place.device))
            with statistics.watched():
                teacher.answer(view.contiguous(memory_format=torch.channels_last))
            if not any(mean.requires_grad for _, mean, _ in statistics.seen):
                raise RequestError(
                    "no gradient leads from the teacher's BatchNorm layers to its input; use blur, which needs none"
                )
            optimizer.zero_grad()
            statistics.divergence().backward()
            optimizer.step()
            falling.step()
            bar.advance(1)
    with torch.no_grad():
        return Filter(*learnt())


class _Centered(nn.Module):
    """A kernel and a bias for images of mean 0 and deviation 1, on which their effects are independent."""

    def __init__(self, images: Float[Tensor, "images channels height width"], size: int) -> None:
        """Start with the filter that changes nothing."""
        super().__init__()
        std, self.mean = torch.std_mean(images, dim=(0, 2, 3))
        self.std = std.clamp_min(1 / 255)
        start = _identity(images.shape[1], size)
        self.weights, self.shift = nn.Parameter(start.kernel), nn.Parameter(start.bias)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return kernel and bias for the original images."""
        kernel = self.weights * (self.std[:, None] / self.std)[:, :, None, None]
        return kernel, self.mean + self.std * self.shift - kernel.sum(dim=(2, 3)) @ self.mean


def blur(teacher: Classifier, pixels: UInt8[Tensor, "images height width channels"], *, sigma: float) -> Filter:
    """Return a Gaussian filter of `sigma` pixels. Below 0, what the Gaussian removes is added, which sharpens.

    Raises: RequestError for a |sigma| below 0.1 or above 3.
    """
    if not 0.1 <= abs(sigma) <= 3:
        raise RequestError(f"sigma={sigma} is not from 0.1 to 3, or from -3 to -0.1")
    reach = math.ceil(4 * abs(sigma))
    row = torch.exp(-(torch.arange(-reach, reach + 1).float() ** 2) / (2 * sigma**2))
    row /= row.sum()
    identity = _identity(pixels.shape[3], len(row))
    smooth = torch.eye(pixels.shape[3])[:, :, None, None] * torch.outer(row, row)
    return Filter(smooth if sigma > 0 else 2 * identity.kernel - smooth, identity.bias)


def inception_score(logits: Float[Tensor, "images classes"]) -> float:
    """Return exp(H(mean of p) - mean of H(p)), from 1 to the number of classes.

    The score is high if each prediction is certain and all together are diverse. p are the teacher's probabilities, not
    those of an Inception network (Improved techniques for training GANs, 2016, https://arxiv.org/abs/1606.03498). Rows
    that are not finite are left out. The score is 1 without finite rows.
    """
    finite = logits[logits.isfinite().all(dim=1)]
    if len(finite) == 0:
        return 1.0
    log_p = torch.log_softmax(finite.double(), dim=1)
    p = log_p.exp()
    mean = p.mean(dim=0)
    return float(torch.exp((p * log_p).sum(dim=1).mean() - torch.special.xlogy(mean, mean).sum()))


def _identity(channels: int, size: int) -> Filter:
    kernel = torch.zeros(channels, channels, size, size)
    kernel[range(channels), range(channels), size // 2, size // 2] = 1
    return Filter(kernel, torch.zeros(channels))
