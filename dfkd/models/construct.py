"""Construction of a network by the class or function that a MODEL text names."""

import torch
from torch import nn

from dfkd.system.components import Component
from dfkd.system.errors import RequestError
from dfkd.system.foreign import Foreign


def construct(model: Component) -> nn.Module:
    """Build a network on the CPU, in float32 and evaluation mode. Raises: RequestError for anything but a module."""
    module = model.build()
    if not isinstance(module, nn.Module):
        raise RequestError(f"model {model.name!r} built a {type(module).__name__}, not a torch.nn.Module")
    with Foreign(f"model {model.text!r} cannot be made ready:", module, always=True):
        module = _unwrapped(module)
        if isinstance(module, torch.jit.ScriptModule):
            raise RequestError(
                f"model {model.name!r} built a TorchScript program, whose layers cannot be read; build the network "
                "itself, or export it with torch.export as .pt2"
            )
        if any(value.is_complex() for value in (*module.parameters(), *module.buffers())):
            return _real_in_float32(module.to("cpu")).eval()  # `to` would drop imaginary parts
        return module.to("cpu", torch.float32).eval()


def _unwrapped(module: nn.Module) -> nn.Module:
    """Return the network within wrappers that parallelize or compile it."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while inner := module.module if isinstance(module, parallel) else getattr(module, "_orig_mod", None):
        module = inner
    return module


def _real_in_float32(module: nn.Module) -> nn.Module:
    """Convert the real weights of a network to float32, in place. Complex weights stay."""
    for value in (*module.parameters(), *module.buffers()):
        if value.is_floating_point():
            value.data = value.data.float()
    return module
