"""Distance of each image from the running statistics of a teacher's BatchNorm layers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.models.features.bn_statistics import before_each, normal_divergence

_USED = 1e-4
"""Smallest scale of a used channel, as a share of the layer's largest. Other channels are constant after the layer."""
_CACHE = 2**21
"""Bytes of a feature map that are squared at once."""


class FoldedNorm(nn.Identity):
    """A stand-in for a BatchNorm that is folded into the convolution before.

    Its buffers are the statistics that the BatchNorm implies for the convolution's new output.
    """

    mean: Tensor
    variance: Tensor
    floor: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_var is not None
        known = norm.running_var + norm.eps
        scale = torch.ones_like(known) if norm.weight is None else norm.weight.detach()
        shift = torch.zeros_like(known) if norm.bias is None else norm.bias.detach()
        for name, value in (("mean", shift), ("variance", scale**2), ("floor", norm.eps / known)):
            self.register_buffer(name, value.clone())


@dataclass(frozen=True)
class _Remembered:
    """Statistics of a layer's input over the training data, one value for each channel."""

    mean: Float[Tensor, " channels"]
    variance: Float[Tensor, " channels"]
    floor: Float[Tensor, " channels"]
    """BatchNorm's epsilon divided by the variance: the variance ratio of a constant channel."""
    used: Float[Tensor, " channels"]
    """1 for a channel that the layer uses, else 0."""


class ImageDistances:
    """Distance of each image of a batch from the statistics of a teacher's BatchNorm layers, measured while `watched`.

    The distance in a layer is the mean over its channels of KL(N(m, v) || N(m', v')). m and v are the mean and the
    variance of the channel over the positions of one image. m' and v' are the running statistics of the layer. The
    distance of an image is the root of the mean square over the layers. Channels with a scale of 0, and layers of fewer
    than 2 positions, are left out. DeepInversion (https://arxiv.org/abs/1912.08795) optimizes a generated batch towards
    the same statistics. Measuring single images of a pool by them is our own.
    """

    def __init__(self, module: nn.Module) -> None:
        """Find the BatchNorm layers of a network, also folded ones (`dfkd.models.features.fold_batchnorm`)."""
        self._layers = {layer: known for layer in module.modules() if (known := _remembered(layer)) is not None}
        self._squares: list[Tensor] = []

    def __bool__(self) -> bool:
        """Return whether the network has running statistics."""
        return bool(self._layers)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Measure the images of the forward pass within the block."""
        self._squares = []
        with before_each(self._layers, self._measure):
            yield

    def take(self, images: int) -> Float[Tensor, " batch"]:
        """Return the distances of the last measured images, in nats.

        They are NaN if no layer ran, or if a layer saw another number of images.
        """
        squares, self._squares = self._squares, []
        if not squares or any(len(layer) != images for layer in squares):
            return torch.full((images,), torch.nan)
        return torch.stack(squares).mean(dim=0).sqrt()

    def _measure(self, layer: nn.Module, inputs: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> None:
        x, known = next(iter([*inputs, *named.values()])), self._layers[layer]
        if x.ndim < 3 or x[0, 0].numel() < 2:
            return
        with torch.autocast(x.device.type, enabled=False):  # else the mean over channels is a product in bfloat16
            self._squares.append(_divergence(x.detach(), known).square())


def _remembered(layer: nn.Module) -> _Remembered | None:
    """Return the running statistics of a layer; None without any.

    A folded layer has those of the output of its convolution.
    """
    if isinstance(layer, FoldedNorm):
        mean, variance, floor = layer.mean, layer.variance, layer.floor
        scale = variance.sqrt()
    elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and isinstance(layer.running_mean, Tensor):
        assert isinstance(layer.running_var, Tensor)
        mean, variance = layer.running_mean, layer.running_var + layer.eps
        floor = layer.eps / variance
        scale = torch.ones_like(variance) if layer.weight is None else layer.weight.detach().abs()
    else:
        return None
    used = (scale > _USED * scale.max()).float()
    if not used.any():
        return None
    return _Remembered(mean.float(), torch.where(used > 0, variance, 1.0).float(), floor.float(), used)


@torch.no_grad()
def _divergence(x: Float[Tensor, "batch channels ..."], known: _Remembered) -> Float[Tensor, " batch"]:
    mean, square = _moments(x)
    ratio = (square - mean.square()).clamp_min(0) / known.variance + known.floor
    apart = (mean - known.mean).square() / known.variance
    return normal_divergence(ratio, apart) @ known.used / known.used.sum()


def _moments(x: Float[Tensor, "batch channels ..."]) -> tuple[Tensor, Tensor]:
    """Return the mean of each channel of each image, and the mean of its square, in float32.

    On a CPU, `torch.var_mean` took half as long as the network. The square of a whole batch exceeded the cache.
    Allocating memory for each square took a quarter of the time.
    """
    rows, over = (x.permute(0, 2, 3, 1).flatten(1, 2), 1) if _is_channels_last(x) else (x.flatten(2), 2)
    size = len(x) if x.is_cuda else max(1, _CACHE // (4 * x[0].numel()))
    kept = torch.empty_like(rows[:size], dtype=torch.float32)
    means, squares = [], []
    for part in map(Tensor.float, rows.split(size)):
        means.append(part.mean(over))
        squares.append(torch.mul(part, part, out=kept[: len(part)]).mean(over))
    return torch.cat(means), torch.cat(squares)


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
