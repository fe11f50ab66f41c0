"""The teacher's channels that a narrower student keeps."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dfkd.models.features.channel_groups import Group, Port, channel_groups
from dfkd.models.load import Model
from dfkd.system.errors import RequestError

_SIDE = 64
"""Pixels of a small image's side. On larger images it takes seconds to find the groups, and they are the same."""


class Channels:
    """The teacher's channels in the layers of a student: the chosen ones, or evenly spaced ones."""

    def __init__(self, chosen: Mapping[Port, Int[Tensor, " count"]] | None = None) -> None:
        """Take the chosen channels of some layers."""
        self._chosen = chosen or {}

    def of(self, port: Port, total: int, count: int) -> Int[Tensor, " count"]:
        """Return `count` ascending indices below `total`."""
        chosen = self._chosen.get(port)
        return evenly(total, count) if chosen is None or total == count else chosen


EVENLY = Channels()
"""Evenly spaced channels in all layers."""


def evenly(total: int, count: int) -> Int[Tensor, " count"]:
    """Return `count` evenly spaced indices below `total`, starting with 0."""
    return torch.arange(count) * total // count


def largest(student: Model, weights: Mapping[str, Tensor]) -> Channels:
    """Choose those channels of the teacher that have the largest weights.

    A channel's importance is the sum of its squared weights in all layers of its group (`channel_groups`): those that
    compute it, normalize it, and read it. This is the importance of DepGraph (https://arxiv.org/abs/2301.12900) for
    pruning. Where the channels of a group are also mixed, evenly spaced ones are kept, so that they stay in order.

    Args:
        student: A student, narrower than its teacher in some layers.
        weights: The teacher's weights by the names of the layers, for layers that the student has, too.
    """
    groups = _groups(student, min(student.trial_size, _SIDE)) or _groups(student, student.trial_size)
    ours = dict(student.module.named_modules())
    chosen: dict[Port, Tensor] = {}
    for group in groups:
        known = [(name, side) for name, side in group.ports if name in weights]
        widths = {(weights[name].shape[side], ours[name].weight.shape[side]) for name, side in known}
        if group.mixed or len(widths) != 1 or {side for _, side in known} != {0, 1}:
            continue
        ((_, count),) = widths
        importance = torch.stack([_squares(weights[name], side) for name, side in sorted(known)]).sum(dim=0)
        kept = importance.argsort(descending=True, stable=True)[:count].sort().values
        chosen.update(dict.fromkeys(group.ports, kept))
    return Channels(chosen)


def _groups(student: Model, side: int) -> list[Group]:
    """Return the groups on images of a size; none for a network that cannot be copied, or rejects size or gradients."""
    try:
        return channel_groups(student.module, student.channels, side)
    except RequestError:
        return []


def _squares(weight: Float[Tensor, "out *rest"], side: int) -> Float[Tensor, " channels"]:
    """Return for each output (side 0) or input (1) the sum of its squared weights."""
    return weight.detach().cpu().double().movedim(side, 0).reshape(weight.shape[side], -1).square().sum(dim=1)
