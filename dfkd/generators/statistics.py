"""How far images are from a teacher's training data, by the statistics that its BatchNorm layers remember."""

from collections.abc import Iterator
from contextlib import contextmanager

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
        self._seen: list[tuple[nn.Module, Tensor, Tensor]] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Take the statistics of every pass through the module within the block."""
        self._seen = []
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
        return [
            (mean - layer.running_mean).norm() + (variance - layer.running_var).norm()  # type: ignore[operator]
            for layer, mean, variance in self._seen
        ]

    def _take(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].float()
        dims = [d for d in range(x.ndim) if d != 1]
        self._seen.append((layer, x.mean(dim=dims), x.var(dim=dims, correction=0)))


def require_statistics(module: nn.Module, method: str) -> BatchStatistics:
    """The statistics of a teacher. Raises: RequestError where no layer remembers any."""
    found = BatchStatistics(module)
    if not found.layers:
        raise RequestError(
            f"{method} reads the statistics of the teacher's BatchNorm layers, and this teacher has none; "
            "dafl, dfad and zskt work without"
        )
    return found
