"""A frozen teacher whose parameters are sharded over the processes, by torch's `fully_shard` (FSDP2).

Each rank holds a slice of every parameter. The parameters of a part of the network are gathered while that part runs.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.models.features.outputs import Outputs
from dfkd.models.features.taps import network_code, run_network
from dfkd.models.load import Model
from dfkd.models.noise import noise
from dfkd.system import ranks
from dfkd.system.console import say
from dfkd.system.device import Place
from dfkd.system.errors import RequestError, first_line

OPTION = "--shard-teacher"
_LEAST = 0.01
"""Smallest share of all parameters for a part that is gathered by itself: each gather is a communication."""
_SAME = 1e-2
"""Tolerance of the sharded network's logits, as a share of the largest logit: a GPU rounds more than a CPU."""
_HINT = "leave it out, or name a network of torch's own layers that lie in Sequential or ModuleList"


def shard_teacher(model: Model, place: Place) -> None:
    """Shard the parameters of a model over the ranks. With one process, only print a note.

    Raises: RequestError for a network that cannot be sharded.
    """
    if ranks.count() == 1:
        say(f"note: {OPTION} changes nothing with one process (docs/machines.md)")
        return
    if is_sharded(model.module):
        return
    if not any(True for _ in model.module.parameters()):
        raise RequestError(f"{OPTION}: the teacher {model.spec} has no parameters to divide; leave it out")
    view = noise(2, model.channels, model.trial_size)
    with network_code(model.module):
        module = model.module.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    try:
        with torch.no_grad():
            whole = run_network(module, view)
            _divide(module, place.device)
            divided = run_network(module, view.to(place.device)).cpu()
    except (RuntimeError, ValueError, NotImplementedError, RequestError) as error:
        raise RequestError(
            f"{OPTION}: the teacher {model.spec} cannot be divided ({first_line(error)}); {_HINT}"
        ) from error
    if bool((divided - whole).abs().max() > _SAME * whole.abs().max()):
        raise RequestError(f"{OPTION}: the teacher {model.spec} gives other outputs when it is divided; {_HINT}")


def is_sharded(module: nn.Module) -> bool:
    """Return whether the parameters of a network are sharded."""
    return _check_all_ranks_run in module._forward_pre_hooks.values()


def complete(value: Tensor) -> Tensor:
    """Return a network's tensor with all its values, gathered if it is sharded. Every rank must call this."""
    whole: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole


def through_logits(outputs: Outputs) -> Outputs:
    """Return outputs of a sharded network whose features also lead back through the logits.

    FSDP gathers a part again when a gradient reaches the part's output. The gradient of a feature inside does not do
    that.
    """
    features = {name: _Tied.apply(value, outputs.logits) for name, value in outputs.features.items()}
    return replace(outputs, features=features)


class _Tied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feature: Tensor, logits: Tensor) -> Tensor:
        ctx.like = logits.shape
        return feature.view_as(feature)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, torch.zeros(ctx.like, device=gradient.device)


def undivided(layer: nn.Linear | None) -> nn.Linear | None:
    """Return a layer with all its weights, gathered if its network is sharded, for a loss that computes with it."""
    if layer is None or not hasattr(layer.weight, "full_tensor"):
        return layer
    # without random weights, which would change the numbers that a student draws afterwards
    whole = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    for name, value in layer.named_parameters():
        setattr(whole, name, nn.Parameter(complete(value.detach()), requires_grad=False))
    return whole.eval()


def _divide(module: nn.Module, device: torch.device) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    scalars = {p for p in module.parameters() if p.ndim == 0}  # FSDP splits along the first dimension
    options: dict[str, Any] = {"mesh": init_device_mesh(device.type, (ranks.count(),)), "reshard_after_forward": True}
    for part in _parts(module):
        fully_shard(part, ignored_params=scalars, **options)
    fully_shard(module, ignored_params=scalars, **options)
    # before the hook of FSDP, which waits for all ranks
    module.register_forward_pre_hook(_check_all_ranks_run, prepend=True)
    for scalar in scalars:
        scalar.data = scalar.data.to(device)


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the large elements of the network's lists of layers, such as blocks: inner ones first, each once."""
    least = _LEAST * sum(p.numel() for p in module.parameters())
    found = {
        id(part): part
        for parent in module.modules()
        if isinstance(parent, nn.Sequential | nn.ModuleList)
        for part in parent
        if not isinstance(part, nn.ModuleList | nn.ModuleDict) and sum(p.numel() for p in part.parameters()) >= least
    }
    found.pop(id(module), None)
    return reversed(found.values())


def _check_all_ranks_run(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Raise RequestError if rank 0 runs the sharded network alone, and would wait forever (forward pre-hook)."""
    if ranks.count() == 1:
        raise RequestError(
            f"{OPTION}: rank 0 alone runs the teacher, and holds only a part of it; leave the option out"
        )
