"""BatchNorm of a network that no longer learns, multiplied into the convolutions before it: a pass over memory less."""

import copy
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dfkd.taps import Tap, Tapped

_SAME = 1e-4
"""Of the largest value, how much an output may differ in float32: rounding is a hundredth of it."""


@torch.no_grad()
def folded(
    module: nn.Module, taps: Mapping[str, Tap], example: Float[Tensor, "batch channels height width"]
) -> nn.Module:
    """A copy of a network in evaluation mode whose BatchNorms are part of the convolutions that feed them.

    Logits, and features at `taps`, are the same up to rounding. What feeds what is seen on a pass of `example`: a
    convolution and a BatchNorm make a pair where each runs once, the one's output is the other's input, and nothing has
    changed it in between; that nothing else reads it is made sure of by comparing what both networks say of `example`.
    Returns `module` itself where there is no pair, or the copy would say something else.
    """
    before, pairs = _said(module, taps, example)
    if not pairs:
        return module
    try:
        twin = copy.deepcopy(module)
    except Exception:  # whatever somebody's module raises: it runs as it is, as it would without this
        return module
    for conv, norm in pairs.items():
        layers = cast(nn.Conv2d, twin.get_submodule(conv)), cast(nn.BatchNorm2d, twin.get_submodule(norm))
        fused = fuse_conv_bn_eval(*layers)
        twin.set_submodule(conv, fused.requires_grad_(False))
        twin.set_submodule(norm, nn.Identity())
    return twin if _agree(before, _said(twin, taps, example)[0]) else module


def _said(module: nn.Module, taps: Mapping[str, Tap], example: Tensor) -> tuple[list[Tensor], dict[str, str]]:
    """The logits and the features, and the names of convolutions, with the BatchNorm behind each."""
    tapped = {tap.path for tap in taps.values()}
    names = Counter(id(layer) for _, layer in module.named_modules(remove_duplicate=False))
    made: dict[int, tuple[str, Tensor, int]] = {}  # the tensor itself, so that no other one gets its number
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
            if not name or names[id(layer)] != 1 or _watched(layer):
                continue
            if type(layer) is nn.Conv2d and name not in tapped:
                hooks.enter_context(layer.register_forward_hook(partial(conv_ran, name=name)))
            elif type(layer) is nn.BatchNorm2d and layer.running_mean is not None:
                hooks.enter_context(layer.register_forward_pre_hook(partial(norm_runs, name=name)))
        network = Tapped(module, taps)
        hooks.callback(network.remove)
        logits, features = network(example)
    twice = {norm for norm, count in Counter(found.values()).items() if count > 1}
    pairs = {conv: norm for conv, norm in found.items() if runs[conv] == runs[norm] == 1 and norm not in twice}
    return [logits, *features.values()], pairs


def _watched(layer: nn.Module) -> bool:
    """Whether something is computed besides: a hook, or a weight made from others."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or hasattr(layer, "parametrizations"))


def _agree(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(
        bool((a.float() - b.float()).abs().max() <= _SAME * b.float().abs().max())
        for a, b in zip(ours, theirs, strict=True)
    )
