"""Networks with fewer channels: the layers of another network, with widths that a text lists."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dfkd.models.architectures.subsampled import safe

Widths = Mapping[str, tuple[int, ...]]
"""Remaining shape by layer: outputs and inputs of a convolution or linear layer, channels of a BatchNorm."""
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def pruned(network: str, widths: str) -> nn.Module:
    """Build the network of the MODEL text `network` with fewer channels, such as `widths=conv1=8x3 bn1=8`.

    The text is enough to build the network, and only the network's own code is run. Pruned layers get random weights.
    Raises: ValueError for a layer that does not exist, and for a width that the layer cannot have.
    """
    from dfkd.models.find import MODEL  # imported here, because it needs this package's list of networks

    module = MODEL.look_up(network).build()
    for path, shape in parse_widths(widths).items():
        try:
            layer = module.get_submodule(path)
        except AttributeError:
            raise ValueError(f"{network} has no layer {path!r}") from None
        cut(layer, path, shape)
    return safe(module)


def parse_widths(text: str) -> dict[str, tuple[int, ...]]:
    """Parse the widths by layer. Raises: ValueError for another form."""
    found = {}
    for item in text.split():
        path, equals, shape = item.partition("=")
        sizes = shape.split("x")
        if not path or not equals or not all(size.isdecimal() for size in sizes) or path in found:
            raise ValueError(f"widths have {item!r}, not LAYER=OUTxIN or LAYER=CHANNELS")
        found[path] = tuple(map(int, sizes))
    return found


def spell_widths(widths: Widths) -> str:
    """Format widths as `parse_widths` reads them."""
    return " ".join(f"{path}={'x'.join(map(str, shape))}" for path, shape in widths.items())


def width_of(layer: nn.Module) -> tuple[int, ...] | None:
    """Return the widths of a layer that can be pruned; None for another layer."""
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.in_channels
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return (layer.num_features,) if isinstance(layer, _NORMS) else None


def cut(layer: nn.Module, path: str, shape: tuple[int, ...]) -> None:
    """Reduce the channels of a layer, in place, and draw random weights.

    Raises: ValueError if the layer cannot have the shape.
    """
    own = width_of(layer)
    if own is None:
        raise ValueError(f"layer {path!r} is a {type(layer).__name__}, which has no widths")
    fits = len(shape) == len(own) and all(1 <= few <= many for few, many in zip(shape, own, strict=True))
    depthwise = isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels > 1
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        fits = fits and depthwise and shape[0] == shape[1]
    if not fits:
        given, had = ("x".join(map(str, sizes)) for sizes in (shape, own))
        raise ValueError(f"layer {path!r} of {had} cannot be one of {given}")
    if isinstance(layer, nn.Conv2d):
        layer.out_channels, layer.in_channels = shape[0], shape[1]
        layer.groups = shape[0] if depthwise else 1
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = shape
    elif isinstance(layer, _NORMS):
        layer.num_features = shape[0]
    for name, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        if value.ndim:
            _shrink(layer, name, value, shape)
    layer.reset_parameters()  # type: ignore[operator]


def _shrink(layer: nn.Module, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Replace a tensor by an uninitialized one of the reduced shape."""
    sizes = [shape[0], *value.shape[1:]]
    if value.ndim > 1:
        sizes[1] = 1 if getattr(layer, "groups", 1) > 1 else shape[1]
    empty = torch.empty(sizes, dtype=value.dtype)
    if name in dict(layer.named_parameters(recurse=False)):
        setattr(layer, name, nn.Parameter(empty, requires_grad=value.requires_grad))
    else:
        setattr(layer, name, empty)
