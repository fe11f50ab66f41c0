"""A step's gradients as the mean over the processes that share its batch, by torch's DistributedDataParallel."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.system import ranks

Compute = Callable[..., tuple[Tensor, Any]]
"""Computes the number that is minimised, and what else is wanted of the step."""


def data_parallel(modules: Iterable[nn.Module], compute: Compute, device: torch.device) -> Compute:
    """`compute`, such that the backward pass from its number leaves the mean gradients in the parameters of `modules`.

    All ranks begin with the parameters of rank 0. BatchNorm's statistics stay each rank's own. With one process it is
    `compute` itself.
    """
    if ranks.count() == 1:
        return compute
    step = _Step(modules, compute).to(device)
    kind = nn.parallel.DistributedDataParallel
    newer = "forward_sync_buffers" in inspect.signature(kind).parameters
    options: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
    wrapped = kind(
        step,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=True,  # losses may leave layers out; and buckets that stay make every run sum alike
        gradient_as_bucket_view=True,
        **options,
    )

    def together(*given: Any) -> tuple[Tensor, Any]:
        number: Tensor = wrapped(*given)
        return number, step.rest

    return together


class _Step(nn.Module):
    """What is wrapped: the modules, and only the number as its output, from which used parameters are found."""

    def __init__(self, modules: Iterable[nn.Module], compute: Compute) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.unused = nn.Parameter(
            torch.zeros(1)
        )  # where there is none, DistributedDataParallel advises against looking
        self._compute = compute
        self.rest: Any = None

    def forward(self, *given: Any) -> Tensor:
        number, self.rest = self._compute(*given)
        return number
