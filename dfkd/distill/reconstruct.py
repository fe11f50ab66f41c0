"""Layers that a student has from its teacher, fitted anew: each to give what the teacher's does, from what it gets."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from dfkd.distill.batchnorm import reestimate
from dfkd.distill.inherit import evenly

_IMAGES, _FEWEST, _PIXELS = 1024, 64, 2**22
"""Images to fit on: so many, or fewer where they have more pixels in all."""
_PAIRS, _PAIRS_A_WEIGHT = 16384, 32
"""Outputs of a channel to fit on, and for every weight of a channel, as far as the maps have so many."""
_WIDEST = 8192
"""Inputs to an output, at the most: their products are half a gigabyte."""
_RIDGE = 1e-3
_PATCH_VALUES = 2**24
"""Values of the patches that are cut out of the maps at a time."""


def images_for(side: int) -> int:
    """How many images of so many pixels a side the layers are fitted on."""
    return min(_IMAGES, max(_FEWEST, _PIXELS // side**2))


@torch.no_grad()
def reconstruct(
    student: nn.Module, teacher: nn.Module, view: Float[Tensor, "batch channels height width"]
) -> dict[str, float]:
    """Fit the student's layers in turn, by least squares, to the outputs of the teacher's layers of the same names.

    Channel Pruning for Accelerating Very Deep Neural Networks, 2017, https://arxiv.org/abs/1707.06168: a layer gets
    what the layers before it, fitted already, make of the images, and is to give what the teacher's layer gives, so
    that errors do not add up. The channels are those of `inherit` (the paper chooses them with LASSO), and where the
    images say little about a weight it stays what it was (ours: a ridge of a thousandth of the inputs' variance). A
    convolution without bias is fitted up to a constant, which the normalization behind it takes away. Outputs are
    compared at places of the maps that are drawn at random. Convolutions in groups stay as they are, and layers whose
    maps are of another size or that have more than 8,192 inputs. BatchNorm's statistics become those of `view`; both
    networks are left in evaluation mode.
    Returns: for each layer, in the order of the pass, the share of the outputs' variance that it gives.
    """
    layers = _matched(student, teacher.eval())
    wanted = {name: _Wanted(ours, len(view)) for name, (ours, _) in layers.items()}
    with _hooks([theirs.register_forward_hook(wanted[name].remember) for name, (_, theirs) in layers.items()]):
        for part in view.split(128):
            teacher(part)
    shares: dict[str, float] = {}
    fit = [
        ours.register_forward_pre_hook(partial(_fit, name=name, wanted=wanted[name], shares=shares))
        for name, (ours, _) in layers.items()
    ]
    with _hooks(fit):
        reestimate(student, [view])
    return shares


@dataclass
class _Wanted:
    """What a layer of the student is to give: the teacher's outputs at some places of the map of every image."""

    layer: nn.Conv2d | nn.Linear
    images: int
    size: int = 0
    """Places of a map."""
    places: list[Int[Tensor, "part some"]] = field(default_factory=list)
    outputs: list[Float[Tensor, "part some channels"]] = field(default_factory=list)

    def remember(self, layer: nn.Module, _: Any, output: Tensor) -> None:
        """A hook on the teacher's layer."""
        rows = _rows(output, isinstance(layer, nn.Conv2d))
        self.size = rows.shape[1]
        pairs = max(_PAIRS, _PAIRS_A_WEIGHT * self.layer.weight[0].numel())
        some = min(self.size, -(-pairs // self.images))
        generator = torch.Generator().manual_seed(len(self.places))  # not the global state: a student's seed is its own
        places = torch.rand(len(rows), self.size, generator=generator).argsort(dim=1)[:, :some].to(rows.device)
        channels = evenly(rows.shape[2], len(self.layer.weight)).to(rows.device)
        self.places.append(places)
        self.outputs.append(_at(rows, places)[..., channels])


def _fit(
    layer: nn.Conv2d | nn.Linear, inputs: tuple[Tensor, ...], *, name: str, wanted: _Wanted, shares: dict[str, float]
) -> None:
    """A hook before the student's layer: give it the weights that make the best of its input."""
    x = inputs[0]
    if name in shares or len(x) != sum(map(len, wanted.places)):
        return  # a layer that is passed several times, or a teacher's that is not passed once
    places, outputs = torch.cat(wanted.places), torch.cat(wanted.outputs).flatten(0, 1)
    patches = layer.weight[0].numel() * wanted.size
    parts = max(1, _PATCH_VALUES // patches)
    moments = _Moments(layer.weight[0].numel(), outputs.shape[1], x.device)
    for part, where, y in zip(x.split(parts), places.split(parts), outputs.split(parts * places.shape[1]), strict=True):
        rows = _patches(layer, part)
        if rows.shape[1] != wanted.size:
            return
        moments.add(_at(rows, where).flatten(0, 1), y)
    centred = layer.bias is not None or isinstance(layer, nn.Conv2d)
    weights, shares[name] = moments.solve(layer.weight.flatten(1).T, centred)
    layer.weight.copy_(weights.T.reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.copy_(moments.constant(weights))


class _Moments:
    """Sums over pairs of an input x and an output y, from which the best linear map from one to the other follows."""

    def __init__(self, width: int, channels: int, device: torch.device) -> None:
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        self.count, self.x, self.y, self.yy = 0, zeros(width), zeros(channels), zeros(channels)
        self.xx, self.xy = zeros(width, width), zeros(width, channels)

    def add(self, x: Float[Tensor, "pairs width"], y: Float[Tensor, "pairs channels"]) -> None:
        """More pairs."""
        self.count += len(x)
        for total, value in (
            (self.x, x.sum(0)),
            (self.y, y.sum(0)),
            (self.yy, y.square().sum(0)),
            (self.xx, x.T @ x),
            (self.xy, x.T @ y),
        ):
            total += value

    def solve(self, start: Float[Tensor, "width channels"], centred: bool) -> tuple[Tensor, float]:
        """The weights, held to `start`, and the share of y's variance (its square, if not `centred`) that they give."""
        xx, xy, yy = self.xx / self.count, self.xy / self.count, self.yy / self.count
        if centred:
            x, y = self.x / self.count, self.y / self.count
            xx, xy, yy = xx - torch.outer(x, x), xy - torch.outer(x, y), yy - y.square()
        start = start.double()
        held = xx + _RIDGE * xx.diagonal().mean().clamp_min(1e-12) * torch.eye(len(xx), device=xx.device)
        weights = start + torch.linalg.solve(held, xy - xx @ start)
        missed = yy - 2 * (weights * xy).sum(0) + (weights * (xx @ weights)).sum(0)
        return weights.float(), 1 - float(missed.sum() / yy.sum().clamp_min(1e-12))

    def constant(self, weights: Float[Tensor, "width channels"]) -> Float[Tensor, " channels"]:
        """What is left of y's mean for the bias."""
        return ((self.y - self.x @ weights.double()) / self.count).float()


def _matched(student: nn.Module, teacher: nn.Module) -> dict[str, tuple[nn.Conv2d | nn.Linear, nn.Module]]:
    """The layers that are fitted, each with the teacher's of its name: of one kind and with kernels of one size."""
    theirs = dict(teacher.named_modules())
    return {
        name: (ours, other)
        for name, ours in student.named_modules()
        if isinstance(ours, (nn.Conv2d, nn.Linear))
        and isinstance(other := theirs.get(name), type(ours))
        and (isinstance(ours, nn.Linear) or _plain(ours))
        and ours.weight.shape[2:] == other.weight.shape[2:]
        and len(ours.weight) <= len(other.weight)
        and ours.weight[0].numel() <= _WIDEST
    }


def _plain(layer: nn.Conv2d) -> bool:
    """Whether every output is a weighted sum of all channels around it, with zeros beyond the edge."""
    return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _patches(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Float[Tensor, "batch places width"]:
    """What each value of the layer's output is a weighted sum of."""
    if isinstance(layer, nn.Linear):
        return _rows(x, False)
    assert not isinstance(layer.padding, str)  # those are not matched
    return F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).transpose(1, 2)


def _rows(x: Tensor, channels_first: bool) -> Float[Tensor, "batch places width"]:
    """Maps, tokens or vectors as one row a place."""
    return x.flatten(2).transpose(1, 2) if channels_first else x.reshape(len(x), -1, x.shape[-1])


def _at(
    rows: Float[Tensor, "batch places width"], places: Int[Tensor, "batch some"]
) -> Float[Tensor, "batch some width"]:
    return rows.gather(1, places[..., None].expand(-1, -1, rows.shape[2]))


@contextmanager
def _hooks(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
