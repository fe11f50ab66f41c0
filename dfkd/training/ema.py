"""Exponential moving average of a student's weights."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


class Average:
    """Exponential moving average of tensors that change in place: mean = d * mean + (1 - d) * tensor after each step.

    Mean teachers are better role models, 2017, https://arxiv.org/abs/1703.01780. The decay warms up as in TensorFlow's
    ExponentialMovingAverage, d = min(decay, (1 + step) / (10 + step)). So the first weights do not stay in the mean of
    a short run. BatchNorm's running statistics are averaged like the weights. They are those of the weights of the last
    few steps (momentum 0.1). The mean of both therefore covers the same steps, and needs no forward pass.
    `--reestimate` computes exact statistics of the averaged weights. Tensors that never change (a frozen weight, a
    constant buffer) keep their bits. Tensors without floats (BatchNorm's counters) are not averaged.
    """

    def __init__(self, tensors: Iterable[Tensor], decay: float) -> None:
        """Start with the current tensors, which must stay the same objects at the same address."""
        self._live = [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
        self._mean = [tensor.clone() for tensor in self._live]
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the tensors after `step` (from 0) to the means, without waiting for the device."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._mean, self._live, 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Copy the means into the tensors."""
        torch._foreach_copy_(self._live, self._mean)

    def state_dict(self) -> dict[str, Any]:
        """Return the means."""
        return {"mean": self._mean}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state from `state_dict`."""
        torch._foreach_copy_(self._mean, state["mean"])
