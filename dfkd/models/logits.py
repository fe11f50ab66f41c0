"""The logits within a network's output, which can be a tuple, a dictionary or an object of tensors."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

LOGITS = "logits"


class Member:
    """A forward hook that replaces an output by one of its members. A tensor stays as it is."""

    def __init__(self, key: Any) -> None:
        """Select the member under `key`: an index, a key or the name of an attribute."""
        self.key = key

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Return the member, or the output itself if there is no such member."""
        return output if isinstance(output, Tensor) else members(output).get(self.key, output)


def members(output: Any) -> dict[Any, Any]:
    """Return the members of a tuple, a mapping or an object, by index, key or attribute."""
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, (tuple, list)):
        return dict(zip(getattr(output, "_fields", range(len(output))), output, strict=True))
    return dict(getattr(output, "__dict__", {}))


def find_member(output: Any, module: nn.Module) -> Any:
    """Return the key of the logits in an output for two images; None if no member or several can be the logits.

    The member `logits` comes first, then the only one [batch, classes], then the only one as wide as the last linear
    layer.
    """
    fitting = {key: value.shape[1] for key, value in members(output).items() if _fits(value)}
    if LOGITS in fitting:
        return LOGITS
    widths = [layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear)]
    if len(fitting) > 1 and widths:
        fitting = {key: width for key, width in fitting.items() if width == widths[-1]}
    return next(iter(fitting)) if len(fitting) == 1 else None


def _fits(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2 and len(value) == 2 and value.shape[1] > 1
