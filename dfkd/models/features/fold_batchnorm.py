"""Folding of a frozen network's BatchNorm layers into the convolutions before them, which saves a pass over memory."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dfkd.models.architectures.subsampled import Subsampled
from dfkd.models.features.image_distance import FoldedNorm
from dfkd.models.features.taps import Tap, Tapped

_SAME = 1e-4
"""Tolerance of an output in float32, as a share of its largest value. Rounding is a hundredth of this."""


@torch.no_grad()
def folded(
    module: nn.Module, taps: Mapping[str, Tap], views: Sequence[Float[Tensor, "_ channels height width"]]
) -> nn.Module:
    """Return a copy of a network in evaluation mode with BatchNorm layers folded into the convolutions before them.

    Logits, and features at `taps`, are the same up to rounding, in the precision in which the copy runs: the weights
    are rounded after the multiplication. A forward pass of the first of two `views` finds the pairs. A convolution and
    a BatchNorm are a pair if each runs once, and if the BatchNorm's input is the convolution's unchanged output.
    Something else may still read that tensor. So the outputs of both networks are compared on the second view. Returns
    `module` itself if there is no pair, if the outputs differ, or if the copy cannot be made or run.
    """
    try:
        return _twin(module, taps, *views) or module
    except Exception:  # a foreign network can raise anything when it is changed; unchanged, it may run
        return module


def _twin(module: nn.Module, taps: Mapping[str, Tap], traced: Tensor, compared: Tensor) -> nn.Module | None:
    """Return the copy; None if there is no pair, or if the outputs differ."""
    pairs = _pairs(module, {tap.path for tap in taps.values()}, traced)
    if not pairs:
        return None
    twin = copy.deepcopy(module)
    for conv, norm in pairs.items():
        layers = cast(nn.Conv2d, twin.get_submodule(conv)), cast(nn.BatchNorm2d, twin.get_submodule(norm))
        fused = fuse_conv_bn_eval(*layers)
        twin.set_submodule(conv, fused.requires_grad_(False))
        twin.set_submodule(norm, FoldedNorm(layers[1]))
    return twin if _agree(*(_said(network, taps, compared) for network in (module, twin))) else None


def _pairs(module: nn.Module, tapped: set[str], view: Tensor) -> dict[str, str]:
    """Return the name of the BatchNorm after each convolution, by the name of the convolution."""
    names = Counter(id(layer) for _, layer in module.named_modules(remove_duplicate=False))
    made: dict[int, tuple[str, Tensor, int]] = {}  # holds the tensor, so that no other tensor gets its id
    runs: Counter[str] = Counter()
    found: dict[str, str] = {}

    def conv_ran(layer: nn.Module, inputs: Any, output: Tensor, *, name: str) -> None:
        runs[name] += 1
        made[id(output)] = name, output, output._version

    def norm_runs(layer: nn.Module, inputs: tuple[Any, ...], *, name: str) -> None:
        runs[name] += 1
        conv, value, version = made.get(id(inputs[0]) if inputs else 0, ("", None, 0))
        if value is not None and value._version == version:
            found[conv] = name

    with ExitStack() as hooks:
        for name, layer in module.named_modules():
            if not name or names[id(layer)] != 1 or layer.training or _watched(layer):
                continue
            if type(layer) in (nn.Conv2d, Subsampled) and name not in tapped:
                hooks.enter_context(layer.register_forward_hook(partial(conv_ran, name=name)))
            elif type(layer) is nn.BatchNorm2d and layer.running_mean is not None:
                hooks.enter_context(layer.register_forward_pre_hook(partial(norm_runs, name=name)))
        module(view)
    return {conv: norm for conv, norm in found.items() if runs[conv] == runs[norm] == 1}


def _watched(layer: nn.Module) -> bool:
    """Return whether a layer has hooks, or a weight that is computed from others."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(hooks) or hasattr(layer, "parametrizations")


def _said(module: nn.Module, taps: Mapping[str, Tap], view: Tensor) -> list[Tensor]:
    """Return the logits and the features."""
    network = Tapped(module, taps)
    try:
        logits, features = network(view)
    finally:
        network.remove()
    return [logits, *features.values()]


def _agree(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(
        bool((a.float() - b.float()).abs().max() <= _SAME * b.float().abs().max())
        for a, b in zip(ours, theirs, strict=True)
    )
