"""The average of a student's weights over its steps."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


class Average:
    """Exponential moving average of tensors that change in-place: mean = d * mean + (1 - d) * tensor after a step.

    Mean teachers are better role models, 2017, https://arxiv.org/abs/1703.01780. The decay warms up as TensorFlow's
    ExponentialMovingAverage has it, d = min(decay, (1 + step) / (10 + step)), so that the first weights do not stay in
    the mean of a short run. BatchNorm's running statistics are averaged like the weights, as they are those of
    the weights of the last few steps (momentum 0.1): the mean of both looks back over the same steps, and costs no pass
    over images. Exact statistics of the averaged weights are `--reestimate`'s. What never changes (a frozen weight, a
    constant buffer) keeps its bits; what is no float (BatchNorm's counters) stands as it is.
    """

    def __init__(self, tensors: Iterable[Tensor], decay: float) -> None:
        """Begin with the tensors as they are; later they must be the same objects, at the same address."""
        self._live = [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
        self._mean = [tensor.clone() for tensor in self._live]
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the tensors after `step` (from 0), without waiting for the device."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._mean, self._live, 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Copy the means into the tensors."""
        torch._foreach_copy_(self._live, self._mean)

    def state_dict(self) -> dict[str, Any]:
        """The means."""
        return {"mean": self._mean}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        torch._foreach_copy_(self._mean, state["mean"])
