"""Mean of a step's gradients over the processes that share its batch, by torch's DistributedDataParallel."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.system import ranks

Compute = Callable[..., tuple[Tensor, Any]]
"""Function that returns the value to minimise, and other results of the step."""


def data_parallel(modules: Iterable[nn.Module], compute: Compute, device: torch.device) -> Compute:
    """Wrap `compute`: a backward pass from its value leaves mean gradients in the parameters of `modules`.

    The mean is that over the ranks. All ranks begin with the parameters of rank 0. BatchNorm statistics stay each
    rank's own. With one process, `compute` itself is returned.
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
        find_unused_parameters=True,  # losses may leave layers out; fixed buckets make every run sum in the same order
        gradient_as_bucket_view=True,
        **options,
    )

    def together(*given: Any) -> tuple[Tensor, Any]:
        number: Tensor = wrapped(*given)
        return number, step.rest

    return together


class _Step(nn.Module):
    """The module that is wrapped. Its only output is the value to minimise, from which used parameters are found."""

    def __init__(self, modules: Iterable[nn.Module], compute: Compute) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        # without an unused parameter, DistributedDataParallel warns about the search for them
        self.unused = nn.Parameter(torch.zeros(1))
        self._compute = compute
        self.rest: Any = None

    def forward(self, *given: Any) -> Tensor:
        number, self.rest = self._compute(*given)
        return number
