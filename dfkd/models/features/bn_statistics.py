"""Distance of images from a teacher's training data, by the running statistics of its BatchNorm layers."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dfkd.system import ranks
from dfkd.system.errors import RequestError
from dfkd.system.shares import pooled

_CONSTANT = 1e-12
"""Added to a variance, so that the gradient of a variance of 0 is 0."""


@contextmanager
def before_each(layers: Iterable[nn.Module], hook: Callable[..., None]) -> Iterator[None]:
    """Call `hook(layer, inputs, named_inputs)` before each forward pass of the layers within the block."""
    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class BatchStatistics:
    """Mean and variance of the inputs of a teacher's BatchNorm layers, recorded while `watched`."""

    def __init__(self, module: nn.Module) -> None:
        """Find the layers with running statistics."""
        self.layers = [
            layer
            for layer in module.modules()
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None
        ]
        self.seen: list[tuple[nn.Module, Tensor, Tensor]] = []
        """Layer, mean and variance of each recorded input, in the order in which the layers ran."""
        self._numbers: list[int] = []
        """Number of values per channel of each recorded input."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Record the statistics of every forward pass within the block."""
        self.seen, self._numbers = [], []
        with before_each(self.layers, self._take):
            yield
        if ranks.count() > 1 and self.seen:
            self._exchange()

    def distances(self) -> list[Float[Tensor, ""]]:
        """Return |mean - running mean|_2 + |variance - running variance|_2 for each recorded input.

        The variances are the batch's own, without Bessel's correction. The sum of the distances is DeepInversion's
        regularizer (https://arxiv.org/abs/1912.08795). Gradients reach the images.
        """
        return [_distance(layer, mean, variance) for layer, mean, variance in self.seen]

    def divergence(self) -> Float[Tensor, ""]:
        """Return the mean over layers and channels of KL(N(mean, variance) || N(running mean, running variance)).

        Gradients reach the images.
        """
        layers = []
        for layer, mean, variance in self.seen:
            known = layer.running_var + layer.eps  # type: ignore[operator]
            apart = (mean - layer.running_mean) ** 2 / known  # type: ignore[operator]
            layers.append(normal_divergence((variance + layer.eps) / known, apart).mean())  # type: ignore[operator]
        return torch.stack(layers).mean()

    def _take(self, layer: nn.Module, inputs: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> None:
        x = next(iter([*inputs, *named.values()]))
        self.seen.append((layer, *_Moments.apply(x)))
        self._numbers.append(x.numel() // x.shape[1])

    def _exchange(self) -> None:
        """Replace the statistics of each rank's rows by those of the whole batch, for all layers at once."""
        layers, means, variances = zip(*self.seen, strict=True)
        sizes = [len(mean) for mean in means]
        of_channels = [mean.new_full((len(mean),), float(n)) for mean, n in zip(means, self._numbers, strict=True)]
        mean, variance = pooled(torch.cat(means), torch.cat(variances), torch.cat(of_channels))
        self.seen = list(zip(layers, mean.split(sizes), variance.split(sizes), strict=True))


class _Moments(torch.autograd.Function):
    """Mean and variance of every channel, in the one pass of BatchNorm's own kernel.

    On a CPU, `x.var` and its gradient took longer than the teacher's forward and backward pass. Sums are in float32 if
    `x` has less precision.
    """

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "batch channels ..."]) -> tuple[Tensor, Tensor]:
        """Compute mean and variance. The kernel also normalizes.

        The gradient of the variance needs the normalized input, (x - mean) / deviation.
        """
        ones = torch.ones(x.shape[1], device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        normalized, mean, scale = torch.native_batch_norm(
            x, ones, torch.zeros_like(ones), None, None, training=True, momentum=0.0, eps=_CONSTANT
        )
        ctx.save_for_backward(normalized, scale)
        return mean, scale**-2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_mean: Tensor, by_variance: Tensor) -> Tensor:
        """Compute the gradient: a value moves the mean by 1 / n, and the variance by 2 (x - mean) / n."""
        normalized, scale = ctx.saved_tensors
        n = normalized.numel() / len(scale)
        shift, slope = (
            value.to(normalized.dtype).view(-1, *[1] * (normalized.ndim - 2))
            for value in (by_mean / n, 2 * by_variance / (scale * n))
        )
        return torch.addcmul(shift, normalized, slope)


class MovingStatistics:
    """Moving average of the statistics of a batch and of the batches before.

    The average describes many images, however few a batch has: FastDFKD's adaptive regularizer
    (https://arxiv.org/abs/2112.06253).
    """

    def __init__(self, statistics: BatchStatistics, momentum: float) -> None:
        """Start the average. `momentum` is the share of the batches before; 0 uses the batch alone."""
        self._statistics, self._momentum = statistics, momentum
        self._before: list[tuple[Tensor, Tensor]] = []

    def distances(self) -> list[Float[Tensor, ""]]:
        """Return `BatchStatistics.distances` of the average. Gradients reach the batch's share."""
        return [
            _distance(layer, *blended)
            for (layer, _, _), blended in zip(self._statistics.seen, self._blended(), strict=True)
        ]

    def move(self) -> None:
        """Add the last recorded batch to the batches before."""
        self._before = [(mean.detach(), variance.detach()) for mean, variance in self._blended()]

    def state_dict(self) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """Return mean and variance of the batches before, one pair per layer; empty before the first."""
        return {"before": self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state from `state_dict`."""
        device = self._statistics.layers[0].running_mean.device  # type: ignore[union-attr]
        self._before = [(mean.to(device), variance.to(device)) for mean, variance in state["before"]]

    def _blended(self) -> list[tuple[Tensor, Tensor]]:
        now = [(mean, variance) for _, mean, variance in self._statistics.seen]
        if not self._before:
            return now
        share = 1 - self._momentum
        return [
            (before[0].lerp(mean, share), before[1].lerp(variance, share))
            for before, (mean, variance) in zip(self._before, now, strict=True)
        ]


def _distance(layer: nn.Module, mean: Float[Tensor, " channels"], variance: Float[Tensor, " channels"]) -> Tensor:
    return (mean - layer.running_mean).norm() + (variance - layer.running_var).norm()  # type: ignore[operator]


def normal_divergence(ratio: Float[Tensor, "*of"], apart: Float[Tensor, "*of"]) -> Float[Tensor, "*of"]:
    """Return KL(N(m, v) || N(m', v')) from `ratio` = v / v' and `apart` = (m - m')^2 / v'."""
    return (ratio - ratio.log() + apart - 1) / 2


def require_statistics(module: nn.Module, without: str = "dafl, dfad and zskt work") -> BatchStatistics:
    """Return the statistics of a teacher. Raises: RequestError if no layer has running statistics.

    `without` completes the error message with methods that need no statistics.
    """
    found = BatchStatistics(module)
    if not found.layers:
        raise RequestError(
            f"it reads the statistics of the teacher's BatchNorm layers, and this teacher has none; {without} without"
        )
    return found
