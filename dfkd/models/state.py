"""Keys and values of a state dict in the form that a network takes: prefixes, tied weights, extra state."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

COUNTER = "num_batches_tracked"
EXTRA = "_extra_state"
"""End of the keys of extra state (`get_extra_state`), which is not a tensor."""
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")  # written by DataParallel, torch.compile and wrappers
State = Mapping[str, Any]


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a network without extra state."""
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def state_to_write(module: nn.Module) -> dict[str, Tensor]:
    """Return the state of `module` for safetensors: on the CPU, each name with its own memory, even if tied."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors_of(module).items()}


def share(state: State, module: nn.Module) -> float:
    """Return the share of the module's keys that a state dict has, without BatchNorm's counters."""
    own = _deciding(module)
    return 1.0 if under(state, module) else len(own & fit_prefix(state, module).keys()) / max(len(own), 1)


def under(state: State, module: nn.Module) -> list[str]:
    """Return the prefixes under which a state dict has all of the module's keys, those of wrappers first."""
    own = _deciding(module)
    one = next(iter(own), "")
    found = [name.removesuffix(one) for name in state if one and name.endswith(f".{one}")]
    whole = [prefix for prefix in found if all(prefix + key in state for key in own)]
    return sorted(whole, key=lambda prefix: not usual_prefix(prefix))


def usual_prefix(prefix: str) -> bool:
    """Return whether a prefix is empty or one that wrappers write."""
    return not prefix or any(prefix.startswith(p) and usual_prefix(prefix.removeprefix(p)) for p in _PREFIXES)


def fit_prefix(state: State, module: nn.Module) -> dict[str, Any]:
    """Return the state dict without shared prefixes, as many as make it fit `module` best.

    The module's own keys may begin with a shared prefix.
    """
    own = module.state_dict().keys()
    candidates = [part(state, "")]
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in candidates[-1])), None):
        candidates.append(part(candidates[-1], prefix))
    return max(candidates, key=lambda candidate: len(own & candidate.keys()))


def part(state: State, prefix: str) -> dict[str, Any]:
    """Return the entries under a prefix by the rest of their keys, with the module versions (`_metadata`)."""
    taken = OrderedDict((key.removeprefix(prefix), value) for key, value in state.items() if key.startswith(prefix))
    versions = getattr(state, "_metadata", None)
    if isinstance(versions, Mapping):
        inside = {f"{name}."[len(prefix) :].removesuffix("."): v for name, v in versions.items() if _in(name, prefix)}
        taken._metadata = inside  # type: ignore[attr-defined]  # torch reads the versions here
    return taken


def only(state: State, keys: Iterable[str]) -> dict[str, Any]:
    """Return the entries under some of the keys."""
    taken, wanted = part(state, ""), {*keys}
    for key in [key for key in taken if key not in wanted]:
        del taken[key]
    return taken


def completed(state: State, module: nn.Module) -> dict[str, Any]:
    """Add what a file need not hold: the other names of tied weights, and the module's own extra state."""
    whole, own = part(state, ""), module.state_dict()
    addresses = {_address(own[name]): name for name in whole if _has_storage(own.get(name))}
    for name, value in own.items():
        if name not in whole and not isinstance(value, Tensor):
            whole[name] = value
        elif name not in whole and _has_storage(value) and _address(value) in addresses:
            whole[name] = whole[addresses[_address(value)]]
    return whole


def _deciding(module: nn.Module) -> dict[str, None]:
    """Return the keys, in order, that weights need to be those of the module."""
    return {name: None for name in module.state_dict() if not name.endswith((COUNTER, EXTRA))}


def _in(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(prefix)


def _has_storage(value: object) -> bool:
    """Return whether a value is a tensor with storage. A lazy module's has none before its first input."""
    return isinstance(value, Tensor) and not is_lazy(value) and not value.is_meta and value.numel() > 0


def _address(value: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return value.data_ptr(), tuple(value.shape), value.stride()
