"""Initialization of a student by copies of its teacher's layers, with fewer channels if the student is narrower."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfkd.distill.init.channels import EVENLY, Channels, largest
from dfkd.models.ensemble import leader
from dfkd.models.features.channel_groups import plain
from dfkd.models.load import Model
from dfkd.models.state import tensors_of
from dfkd.system.errors import RequestError


@dataclass(frozen=True)
class Inheritance:
    """What a student has copied from its teacher."""

    channels: Channels
    """Channels of the teacher that the layers have."""
    summary: str
    """One line of text."""


def inherit(student: Model, teacher: Model) -> Inheritance:
    """Copy every layer to the student that the teacher has under the same name, if it fits.

    This is weight selection (Initializing Models with Larger Ones, 2023, https://arxiv.org/abs/2311.18823). A narrower
    student gets the channels of the teacher with the largest weights (`largest`), or evenly spaced ones, as in the
    paper. Layers whose channels are added get the same channels. Concatenated channels, and channels that are flattened
    with their pixels, are not in order; `reconstruct` adapts these layers. A sum over fewer inputs is scaled up to its
    old size. This is ours; before a normalization it only changes the size of the weights.

    A layer is a module with parameters or buffers of its own. It is copied as a whole or not at all, because a bias is
    useless without its weight. Blocks are numbered within their stage, so a shallower student gets each stage's first
    blocks. Of several teachers, the layers of the first one are copied.

    Raises: RequestError if the two networks share no layer with weights.
    """
    layers, theirs = _layers(student), _layers(teacher)
    shared = _shared(layers, theirs)
    if not shared:
        raise RequestError(
            f"no layer of the student {student.spec} has the name of a layer of the teacher {teacher.spec} and fits "
            "into it; use a student of the teacher's family that is not wider, or --init none"
        )
    thinner = sum(_shapes(layers[name]) != _shapes(theirs[name]) for name in shared)
    channels = EVENLY
    if thinner:
        channels = largest(student, {name: theirs[name]["weight"] for name in shared if "weight" in theirs[name]})
    with torch.no_grad():
        for layer in shared:
            for name, value in layers[layer].items():
                value.copy_(thinned(theirs[layer][name], value.shape, channels, layer))
    rest = f", {thinner} of them with a part of the channels" if thinner else ""
    return Inheritance(channels, f"{len(shared)} of the student's {len(layers)} layers begin as the teacher's{rest}")


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


def depthwise(layer: nn.Module) -> bool:
    """Return whether every output channel is a convolution of the input channel with the same number only."""
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels


def thinned(weight: Tensor, shape: torch.Size, channels: Channels, layer: str) -> Tensor:
    """Return some channels of a layer's `weight`, [out, in, ...] or [channels], of the given shape.

    If inputs are left out, the weights are scaled up to keep the size of the sum.
    """
    if weight.shape == shape or weight.ndim == 0:
        return weight
    few = weight[channels.of((layer, 0), len(weight), shape[0])]
    if weight.ndim == 1 or weight.shape[1] == shape[1]:
        return few
    return few[:, channels.of((layer, 1), weight.shape[1], shape[1])] * (weight.shape[1] / shape[1])


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
