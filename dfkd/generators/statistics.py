"""How far images are from a teacher's training data, by the statistics that its BatchNorm layers remember."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from dfkd.errors import RequestError


class BatchStatistics:
    """Reads the mean and variance of what a teacher's BatchNorm layers are given, while `watched`."""

    def __init__(self, module: nn.Module) -> None:
        """Find the layers that remember statistics."""
        self.layers = [
            layer
            for layer in module.modules()
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None
        ]
        self.seen: list[tuple[nn.Module, Tensor, Tensor]] = []
        """Layer, mean and variance, in the order in which the layers ran."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Take the statistics of every pass through the module within the block."""
        self.seen = []
        handles = [layer.register_forward_pre_hook(self._take) for layer in self.layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def distances(self) -> list[Float[Tensor, ""]]:
        """For every layer that was passed: |mean - running mean|_2 + |variance - running variance|_2.

        The variances are the batch's own, without Bessel's correction. DeepInversion's regularizer
        (https://arxiv.org/abs/1912.08795) is their sum; gradients reach the images.
        """
        return [_distance(layer, mean, variance) for layer, mean, variance in self.seen]

    def _take(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].float()
        dims = [d for d in range(x.ndim) if d != 1]
        self.seen.append((layer, x.mean(dim=dims), x.var(dim=dims, correction=0)))


class MovingStatistics:
    """The statistics of the batch being made together with those of the batches before it.

    What a layer is given is then measured over many images, however few a batch has: FastDFKD's adaptive regularizer
    (https://arxiv.org/abs/2112.06253).
    """

    def __init__(self, statistics: BatchStatistics, momentum: float) -> None:
        """`momentum`: the share of the batches before; 0 is the batch alone."""
        self._statistics, self._momentum = statistics, momentum
        self._before: list[tuple[Tensor, Tensor]] = []

    def distances(self) -> list[Float[Tensor, ""]]:
        """`BatchStatistics.distances` of the blended statistics; gradients reach the batch's share."""
        return [
            _distance(layer, *blended)
            for (layer, _, _), blended in zip(self._statistics.seen, self._blended(), strict=True)
        ]

    def move(self) -> None:
        """Count what was seen last among the batches before."""
        self._before = [(mean.detach(), variance.detach()) for mean, variance in self._blended()]

    def state_dict(self) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """Mean and variance of the batches before, a pair a layer; none before the first."""
        return {"before": self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        places = [layer.running_mean.device for layer in self._statistics.layers]  # type: ignore[union-attr]
        self._before = [
            (mean.to(place), variance.to(place))
            for (mean, variance), place in zip(state["before"], places, strict=False)
        ]

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


def require_statistics(module: nn.Module, method: str) -> BatchStatistics:
    """The statistics of a teacher. Raises: RequestError where no layer remembers any."""
    found = BatchStatistics(module)
    if not found.layers:
        raise RequestError(
            f"{method} reads the statistics of the teacher's BatchNorm layers, and this teacher has none; "
            "dafl, dfad and zskt work without"
        )
    return found
