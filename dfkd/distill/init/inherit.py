"""Initialization of a student by copies of its teacher's layers, with fewer channels if the student is narrower."""

from collections.abc import Mapping
from typing import TypeGuard

import torch
from jaxtyping import Int
from torch import Tensor, nn

from dfkd.models.ensemble import leader
from dfkd.models.load import Model
from dfkd.models.state import tensors_of
from dfkd.system.errors import RequestError


def inherit(student: Model, teacher: Model) -> str:
    """Copy every layer to the student that the teacher has under the same name, if it fits; return a summary.

    This is weight selection (Initializing Models with Larger Ones, 2023, https://arxiv.org/abs/2311.18823). A narrower
    student gets evenly spaced channels of the teacher. These are the same channels in every layer of one width, so a
    residual stream stays in order. Concatenated channels, and channels that are flattened with their pixels, are not in
    order; `reconstruct` adapts these layers. A sum over fewer inputs is scaled up to its old size. This is ours; before
    a normalization it only changes the size of the weights.

    A layer is a module with parameters or buffers of its own. It is copied as a whole or not at all, because a bias is
    useless without its weight. Blocks are numbered within their stage, so a shallower student gets each stage's first
    blocks. Of several teachers, the layers of the first one are copied.

    Raises: RequestError if the two networks share no layer with weights.
    """
    layers, theirs = _layers(student), _layers(teacher)
    shared = _shared(layers, theirs)
    if not shared:
        raise RequestError(
            f"no layer of the student {student.spec} has the name of one of the teacher's "
            f"({teacher.spec}) and is a part of it; take a student of its family that is not wider, or random weights"
        )
    with torch.no_grad():
        for layer in shared:
            for name, value in layers[layer].items():
                value.copy_(thinned(theirs[layer][name], value.shape))
    thinner = sum(_shapes(layers[name]) != _shapes(theirs[name]) for name in shared)
    rest = f", {thinner} of them as evenly spaced channels" if thinner else ""
    return f"{len(shared)} of the student's {len(layers)} layers begin as the teacher's{rest}"


def heir(student: Model, teacher: Model) -> bool:
    """Return whether `inherit` can copy all layers of the student, and the student is not the teacher itself.

    With fewer channels, all of the student's weights have to belong to plain or depthwise layers. In other channel
    groups, and in attention heads, evenly spaced channels have another meaning.
    """
    ours, theirs = tensors_of(student.module), tensors_of(_network(teacher))
    layers = _layers(student)
    if twins(student, teacher) or len(_shared(layers, _layers(teacher))) < len(layers):
        return False
    modules, of_teacher = (dict(network.named_modules()) for network in (student.module, _network(teacher)))
    # a layer that the student uses under a second name has that name in its state only
    narrower = any(value.shape != theirs[name].shape for name, value in ours.items() if name in theirs)
    return not narrower or all(
        plain(modules[name]) or (depthwise(modules[name]) and depthwise(of_teacher[name]))
        for name, own in layers.items()
        if any(value.ndim > 1 for value in own.values())
    )


def twins(student: Model, teacher: Model) -> bool:
    """Return whether the student has the teacher's shapes, so that `inherit` makes it a copy of the teacher."""
    return _shapes(tensors_of(student.module)) == _shapes(tensors_of(_network(teacher)))


Plain = nn.Conv2d | nn.Linear


def plain(layer: nn.Module | None) -> TypeGuard[Plain]:
    """Return whether every output is a weighted sum over all channels; a convolution has to pad with zeros."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


def depthwise(layer: nn.Module) -> bool:
    """Return whether every output channel is a convolution of the input channel with the same number only."""
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels


def evenly(total: int, count: int) -> Int[Tensor, " count"]:
    """Return `count` evenly spaced indices below `total`, starting with 0."""
    return torch.arange(count) * total // count


def thinned(weight: Tensor, shape: torch.Size) -> Tensor:
    """Return evenly spaced channels of `weight`, [out, in, ...] or [channels], cut to `shape`.

    If inputs are left out, the weights are scaled up to keep the size of the sum.
    """
    if weight.shape == shape or weight.ndim == 0:
        return weight
    few = weight[evenly(len(weight), shape[0])]
    if weight.ndim == 1 or weight.shape[1] == shape[1]:
        return few
    return few[:, evenly(weight.shape[1], shape[1])] * (weight.shape[1] / shape[1])


_Layers = dict[str, dict[str, Tensor]]
"""Parameters and buffers by name, for every module that has some of its own."""


def _network(model: Model) -> nn.Module:
    """Return the network whose layers a classifier has: itself, or the first of an ensemble."""
    return leader(model.module)[1]


def _layers(model: Model) -> _Layers:
    return {name: own for name, layer in _network(model).named_modules() if (own := _own(layer))}


def _own(layer: nn.Module) -> dict[str, Tensor]:
    return {**dict(layer.named_parameters(recurse=False)), **dict(layer.named_buffers(recurse=False))}


def _shared(ours: _Layers, theirs: _Layers) -> list[str]:
    """Return the names of the layers that can be copied; none if only layers without weight matrices fit."""
    names = [name for name, own in ours.items() if _fits(own, theirs.get(name, {}))]
    return names if any(value.ndim > 1 for name in names for value in ours[name].values()) else []


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}


def _fits(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Return whether a layer's tensors are those of another one with fewer or equal channels and the same kernels."""
    return ours.keys() == theirs.keys() and all(
        value.ndim == theirs[name].ndim
        and value.shape[2:] == theirs[name].shape[2:]
        and all(few <= many for few, many in zip(value.shape[:2], theirs[name].shape[:2], strict=True))
        for name, value in ours.items()
    )
