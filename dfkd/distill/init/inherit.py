"""A student that begins with layers of its teacher, thinned out where it is narrower."""

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
    """Copy to the student every layer that the teacher has under the same name, as far as it fits; says how many.

    Weight selection, Initializing Models with Larger Ones, 2023, https://arxiv.org/abs/2311.18823: where the student
    has fewer channels, it gets evenly spaced ones of the teacher's, which are the same channels in every layer of a
    width, so that a residual stream stays in order (channels that are concatenated, or flattened with their pixels, are
    not: there it is for `reconstruct` to make the best of it). A sum over fewer inputs is weighted up to its old size
    (ours; behind a normalization it changes nothing but the size of the weights). A layer is a module with parameters
    or buffers of its own, and is copied whole or not at all: a bias says nothing without its weight. As blocks are
    numbered within their stage, a shallower student gets each stage's first blocks. Of several teachers the first one's
    layers are taken.
    Raises: RequestError where the two share no layer with weights.
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
    """Whether the student is a part of the teacher that `inherit` can cut out: all its layers, but not the teacher.

    With fewer channels, all of its weights have to be those of plain or depthwise layers: in other groups of channels
    and in the heads of an attention, evenly spaced channels are others than they were.
    """
    ours, theirs = tensors_of(student.module), tensors_of(_network(teacher))
    layers = _layers(student)
    if twins(student, teacher) or len(_shared(layers, _layers(teacher))) < len(layers):
        return False
    modules, of_teacher = (dict(network.named_modules()) for network in (student.module, _network(teacher)))
    narrower = any(value.shape != theirs[name].shape for name, value in ours.items())
    return not narrower or all(
        plain(modules[name]) or (depthwise(modules[name]) and depthwise(of_teacher[name]))
        for name, own in layers.items()
        if any(value.ndim > 1 for value in own.values())
    )


def twins(student: Model, teacher: Model) -> bool:
    """Whether the student is as large as the teacher, so that what `inherit` makes is the teacher itself."""
    return _shapes(tensors_of(student.module)) == _shapes(tensors_of(_network(teacher)))


Plain = nn.Conv2d | nn.Linear


def plain(layer: nn.Module | None) -> TypeGuard[Plain]:
    """Whether every output is a weighted sum of all channels, of a convolution with zeros beyond the edge."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


def depthwise(layer: nn.Module) -> bool:
    """Whether every output channel is a convolution of the input channel of the same number alone."""
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels


def evenly(total: int, count: int) -> Int[Tensor, " count"]:
    """`count` evenly spaced numbers below `total`, the first of them 0."""
    return torch.arange(count) * total // count


def thinned(weight: Tensor, shape: torch.Size) -> Tensor:
    """Evenly spaced channels of `weight`, [out, in, ...] or [channels]; fewer inputs are weighted up to the old sum."""
    if weight.shape == shape or weight.ndim == 0:
        return weight
    few = weight[evenly(len(weight), shape[0])]
    if weight.ndim == 1 or weight.shape[1] == shape[1]:
        return few
    return few[:, evenly(weight.shape[1], shape[1])] * (weight.shape[1] / shape[1])


_Layers = dict[str, dict[str, Tensor]]
"""The parameters and buffers of every module that has some of its own."""


def _network(model: Model) -> nn.Module:
    """The network whose layers are a classifier's."""
    return leader(model.module)[1]


def _layers(model: Model) -> _Layers:
    return {name: own for name, layer in _network(model).named_modules() if (own := _own(layer))}


def _own(layer: nn.Module) -> dict[str, Tensor]:
    return {**dict(layer.named_parameters(recurse=False)), **dict(layer.named_buffers(recurse=False))}


def _shared(ours: _Layers, theirs: _Layers) -> list[str]:
    """The names of the layers that can be copied; none where they are without weights, such as normalizations."""
    names = [name for name, own in ours.items() if _fits(own, theirs.get(name, {}))]
    return names if any(value.ndim > 1 for name in names for value in ours[name].values()) else []


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}


def _fits(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Whether a layer's tensors are those of another's with some of its channels: kernels are not cut."""
    return ours.keys() == theirs.keys() and all(
        value.ndim == theirs[name].ndim
        and value.shape[2:] == theirs[name].shape[2:]
        and all(few <= many for few, many in zip(value.shape[:2], theirs[name].shape[:2], strict=True))
        for name, value in ours.items()
    )
