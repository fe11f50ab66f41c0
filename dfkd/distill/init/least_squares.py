"""Least-squares fit of a linear map, from sums over pairs that are added in parts."""

import torch
from jaxtyping import Float
from torch import Tensor

WIDEST = 8192
"""Largest number of inputs of a map that is fitted; their products take half a gigabyte."""


class Moments:
    """Means and products of inputs x and outputs y over pairs. They determine the best linear map from x to y."""

    def __init__(self, width: int, channels: int, device: torch.device) -> None:
        self.width, self.count = width, 0
        self.start = torch.zeros(width + channels, device=device)
        self.sums = torch.zeros(width + channels, dtype=torch.float64, device=device)
        self.products = torch.zeros(width + channels, width + channels, dtype=torch.float64, device=device)

    def add(self, x: Float[Tensor, "pairs width"], y: Float[Tensor, "pairs channels"]) -> None:
        """Add pairs, as deviations from the first pairs' mean.

        Products of large values would lose the small differences to rounding.
        """
        z = torch.cat([x, y], dim=1)
        if not self.count:
            self.start = z.mean(0)
        z = z - self.start
        self.count += len(z)
        self.sums += z.sum(0)
        self.products += z.T @ z

    @property
    def means(self) -> tuple[Float[Tensor, " width"], Float[Tensor, " channels"]]:
        """Means of x and y."""
        both = self.start + self.sums / self.count
        return both[: self.width], both[self.width :]

    def solve(
        self, start: Float[Tensor, "width channels"], up_to_constant: bool, penalty: float
    ) -> tuple[Float[Tensor, "width channels"], float]:
        """Return the weights, and the share of y's variance that they explain.

        `penalty` is that of squared changes from `start`, relative to the mean variance of x. Unless `up_to_constant`,
        the map has no constant, and squares replace variances.
        """
        shifted = self.sums / self.count
        products = (self.products / self.count).addr_(shifted, shifted, alpha=-1)
        if not up_to_constant:
            both = torch.cat(self.means)
            products.addr_(both, both)
        w = self.width
        xx, xy, yy = products[:w, :w], products[:w, w:], products[w:, w:].diagonal()
        start, scale = start.double(), xx.diagonal().mean().clamp_min(1e-12)
        held = xx.clone()
        held.diagonal().add_(scale * penalty)
        weights = start + torch.linalg.solve(held, xy - xx @ start)
        missed = yy - 2 * (weights * xy).sum(0) + (weights * (xx @ weights)).sum(0)
        return weights.float(), 1 - float(missed.sum() / yy.sum().clamp_min(1e-12))

    def constant(self, weights: Float[Tensor, "width channels"]) -> Float[Tensor, " channels"]:
        """Return the bias: y's mean minus the mean of the weighted inputs."""
        x, y = self.means
        return (y - x @ weights.double()).float()
