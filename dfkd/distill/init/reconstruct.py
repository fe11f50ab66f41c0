"""Least-squares fit of the student's copied layers to the outputs of the teacher's layers."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from dfkd.distill.init.channels import EVENLY, Channels
from dfkd.distill.init.fit import Fit
from dfkd.distill.init.least_squares import WIDEST, Moments
from dfkd.models.classifier import Classifier
from dfkd.models.ensemble import leader
from dfkd.models.features.channel_groups import Plain, plain
from dfkd.models.features.taps import network_code, run_network
from dfkd.system.console import say
from dfkd.training.bn_reestimate import batch_norms, reestimate
from dfkd.training.sources import Batch, Source

_IMAGES, _FEWEST, _PIXELS = 1024, 64, 2**21
"""Number of images to fit on: the most, the fewest, and the number of pixels that limits it in between."""
_PAIRS, _PAIRS_AN_INPUT = 16384, 8
"""Number of input-output pairs to fit a layer on: the minimum, and the minimum per input of the layer.

There may be fewer if the maps have fewer positions."""
_RIDGE, _RIDGE_OF_FEW = 1e-3, 0.1
"""Ridge penalty on changes of the weights, relative to the inputs' mean variance; two terms.

The first term is constant. The second is multiplied by inputs / pairs."""
_PATCH_VALUES = 2**24
"""Number of patch values that are cut out of the maps at a time."""


def images_for(side: int) -> int:
    """Return the number of images for the fit, for images of `side` x `side` pixels."""
    return min(_IMAGES, max(_FEWEST, _PIXELS // side**2))


@dataclass(frozen=True)
class Copied:
    """What the student's copied layers are a part of."""

    channels: Channels
    whole: nn.Module | None = None
    """The network whose layers they are. None: the teacher."""


class LayersFit(Fit):
    """Fit of all layers that the student has copied from a larger network."""

    what = "copied layers"

    def __init__(self, source: Source, image_size: int, copied: Copied) -> None:
        """Fit on images of `source`, with `image_size` pixels on each side."""
        self._source, self.views, self._copied = source, images_for(image_size), copied

    def run(self, student: nn.Module, teacher: Classifier, augment: Callable[[Batch], Tensor]) -> None:
        """Fit the layers, and print what share of the teacher's outputs they explain."""
        whole = self._copied.whole
        owner = "teacher" if whole is None else "whole network"
        say(f"fitting the student's layers to the {owner}'s on {self.views:,} views")
        view = augment(self._source.sample(self.views))
        whole = leader(teacher.model.module)[1] if whole is None else whole.to(view.device)
        shares = reconstruct(student, whole, view, self._copied.channels).values()
        if shares:
            what = f"{min(shares):.0%} to {max(shares):.0%} of the variance of the {owner}'s"
            say(f"{len(shares)} layers are fitted; on these images their outputs give {what}")
        else:
            say("no layer could be fitted; the student begins with the copied layers")


@torch.no_grad()
def reconstruct(
    student: nn.Module,
    teacher: nn.Module,
    view: Float[Tensor, "batch channels height width"],
    channels: Channels = EVENLY,
) -> dict[str, float]:
    """Fit the student's layers in turn, by least squares, to the outputs of the teacher's layers of the same names.

    Channel Pruning for Accelerating Very Deep Neural Networks, 2017, https://arxiv.org/abs/1707.06168: the input of a
    layer is the output of the student's layers before it, which are already fitted. Its target is the output of the
    teacher's layer at the `channels` that the student has copied. The paper chooses them with LASSO, and also corrects
    for a shortcut's error; neither is done here.

    Ours is a ridge penalty: weights that the images determine poorly stay near their old values. The penalty grows as
    pairs get few. Without it, layers with about as many inputs as pairs overfit the images. In a student with
    BatchNorm, a convolution without bias is fitted up to a constant, which BatchNorm removes. Outputs are compared at
    random positions of the maps.

    These layers stay as they are: convolutions in groups, and layers whose maps differ in size between the networks.
    Layers with more than 8,192 inputs stay, too. So do layers that compute more than their type, such as standardized
    weights. BatchNorm's statistics are re-estimated on `view`. Both networks are left in evaluation mode.

    Returns: for each layer, in the order of the forward pass, the share of the teacher outputs' variance that its
    outputs explain on these images. For a layer without bias that is not fitted up to a constant, it is the share of
    their square.
    """
    with network_code(teacher):
        teacher.eval()
    layers = _matched(student, teacher)
    wanted = {name: _Wanted(name, ours, len(view), channels) for name, (ours, _) in layers.items()}
    with ExitStack() as hooks:
        for name, (_, theirs) in layers.items():
            hooks.enter_context(theirs.register_forward_hook(wanted[name].remember))
        for part in view.split(128) if layers else ():
            run_network(teacher, part)
    shares: dict[str, float] = {}
    fit = partial(_fit, constant_free=bool(batch_norms(student)), shares=shares)
    with ExitStack() as hooks:
        for name, (ours, _) in layers.items():
            hooks.enter_context(ours.register_forward_pre_hook(partial(fit, name=name, wanted=wanted[name])))
        if layers:
            reestimate(student, [view])
    return shares


@dataclass
class _Wanted:
    """Target of a student's layer: the teacher's outputs at some positions of every image's map."""

    name: str
    layer: Plain
    images: int
    channels: Channels
    size: int = 0
    """Number of positions of a map."""
    positions: list[Int[Tensor, "part some"]] = field(default_factory=list)
    outputs: list[Float[Tensor, "part some channels"]] = field(default_factory=list)

    def remember(self, _: nn.Module, inputs: Any, output: Tensor) -> None:
        """Record outputs at random positions, as a forward hook of the teacher's layer."""
        rows = _rows(output, isinstance(self.layer, nn.Conv2d))
        self.size = rows.shape[1]
        pairs = max(_PAIRS, _PAIRS_AN_INPUT * self.layer.weight[0].numel())
        some = min(self.size, -(-pairs // self.images))
        generator = torch.Generator().manual_seed(len(self.positions))  # the global state is the student's
        positions = torch.rand(len(rows), self.size, generator=generator).argsort(dim=1)[:, :some].to(rows.device)
        channels = self.channels.of((self.name, 0), rows.shape[2], len(self.layer.weight)).to(rows.device)
        self.positions.append(positions)
        self.outputs.append(_at(rows, positions)[..., channels])

    def take(self) -> tuple[Int[Tensor, "batch some"], Float[Tensor, "pairs channels"]]:
        """Return the positions and outputs of all images, and release them."""
        taken = torch.cat(self.positions), torch.cat(self.outputs).flatten(0, 1)
        self.positions, self.outputs = [], []
        return taken


def _fit(
    layer: Plain,
    inputs: tuple[Tensor, ...],
    *,
    name: str,
    wanted: _Wanted,
    constant_free: bool,
    shares: dict[str, float],
) -> None:
    """Fit the layer to its input and its target, as a forward pre-hook of the student's layer."""
    if not inputs or len(inputs[0]) != sum(map(len, wanted.positions)):
        return  # a layer called with keywords or a second time, or a teacher's layer not called exactly once
    x, (positions, outputs), width = inputs[0], wanted.take(), layer.weight[0].numel()
    parts = max(1, _PATCH_VALUES // (width * wanted.size))
    moments = Moments(width, outputs.shape[1], x.device)
    split = x.split(parts), positions.split(parts), outputs.split(parts * positions.shape[1])
    for part, where, y in zip(*split, strict=True):
        rows = _patches(layer, part)
        if rows.shape[1] != wanted.size or (not moments.count and not _computes(layer, part, rows)):
            return
        moments.add(_at(rows, where).flatten(0, 1), y)
    up_to_constant = layer.bias is not None or (constant_free and isinstance(layer, nn.Conv2d))
    penalty = _RIDGE + _RIDGE_OF_FEW * width / moments.count
    weights, shares[name] = moments.solve(layer.weight.flatten(1).T, up_to_constant, penalty)
    layer.weight.copy_(weights.T.reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.copy_(moments.constant(weights))


def _matched(student: nn.Module, teacher: nn.Module) -> dict[str, tuple[Plain, nn.Module]]:
    """Return the student's layers to fit, each with the teacher's layer of the same name.

    The teacher's layer may be part of an exported program.
    """
    theirs = dict(teacher.named_modules())
    matched: dict[str, tuple[Plain, nn.Module]] = {}
    for name, ours in student.named_modules():
        weight = getattr(theirs.get(name), "weight", None)
        if plain(ours) and isinstance(weight, Tensor) and weight.ndim == ours.weight.ndim:
            same = ours.weight.shape[2:] == weight.shape[2:] and len(ours.weight) <= len(weight)
            if same and ours.weight[0].numel() <= WIDEST:
                matched[name] = (ours, theirs[name])
    return matched


def _patches(layer: Plain, x: Tensor) -> Float[Tensor, "batch positions width"]:
    """Return the inputs of which each position's outputs are weighted sums."""
    if isinstance(layer, nn.Linear):
        return _rows(x, False)
    assert not isinstance(layer.padding, str)  # such a layer is not `plain`
    return F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).transpose(1, 2)


def _computes(layer: Plain, x: Tensor, rows: Float[Tensor, "batch positions width"]) -> bool:
    """Return whether the layer's output is the plain one of its type: a subclass may standardize weights or pad."""
    if type(layer) in (nn.Conv2d, nn.Linear):
        return True
    known = F.linear(rows, layer.weight.flatten(1), layer.bias)
    given = _rows(layer.forward(x), isinstance(layer, nn.Conv2d))
    return given.shape == known.shape and torch.allclose(given, known, rtol=1e-3, atol=1e-3 * float(known.abs().max()))


def _rows(x: Tensor, channels_first: bool) -> Float[Tensor, "batch positions width"]:
    """Return maps, tokens or vectors as one row per position."""
    return x.flatten(2).transpose(1, 2) if channels_first else x.reshape(len(x), -1, x.shape[-1])


def _at(
    rows: Float[Tensor, "batch positions width"], positions: Int[Tensor, "batch some"]
) -> Float[Tensor, "batch some width"]:
    return rows.gather(1, positions[..., None].expand(-1, -1, rows.shape[2]))
