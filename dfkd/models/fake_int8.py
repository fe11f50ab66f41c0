"""Quantization-aware training: a network whose layers round their weights and inputs to int8."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.models.architectures.subsampled import Subsampled, every, leaves_out
from dfkd.models.features.fold_batchnorm import folded
from dfkd.models.features.image_distance import FoldedNorm
from dfkd.models.features.taps import modes_kept
from dfkd.models.noise import noise
from dfkd.system.shares import widest

LOW, HIGH = -128, 127
_MEMORY = 0.99
"""Share of the previous range that is kept in a step. The rest is the batch's range."""


def takes_int8(layer: nn.Module) -> bool:
    """Return whether a layer can compute in int8."""
    if type(layer) in (nn.Conv2d, Subsampled):
        return cast(nn.Conv2d, layer).padding_mode == "zeros" and layer.padding != "same"
    return type(layer) is nn.Linear


def weight_scales(weight: Tensor) -> Float[Tensor, " outputs"]:
    """Return one scale per output channel, so that the largest absolute weight becomes 127."""
    return (weight.detach().abs().flatten(1).amax(dim=1) / HIGH).clamp_min(1e-12)


def rounded_weight(weight: Tensor) -> Tensor:
    """Return a weight on the int8 grid of its scales, in float32."""
    scales = weight_scales(weight)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -HIGH, HIGH)


class Rounded(nn.Module):
    """Base of layers that round their input and weights. The input's range is a moving average over batches.

    The gradient passes the rounding unchanged, and is 0 outside the range (Jacob et al. 2018, arXiv 1712.05877). Before
    the first batch nothing is rounded.
    """

    low: Tensor
    high: Tensor
    seen: Tensor

    @classmethod
    def of(cls, layer: nn.Conv2d | nn.Linear) -> nn.Module:
        """Turn a layer into one that rounds, in place, and return it."""
        layer.__class__ = _Conv2d if isinstance(layer, nn.Conv2d) else _Linear
        for name in ("low", "high", "seen"):
            layer.register_buffer(name, torch.zeros((), device=layer.weight.device))
        return layer

    def quantization(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero point of the input, so that 0 is exact."""
        scale = ((self.high - self.low) / (HIGH - LOW)).clamp_min(1e-8)
        return scale, (LOW - self.low / scale).round().clamp(LOW, HIGH).to(torch.int32)

    def rounded(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Round the input and the weights to the int8 grid, in float32."""
        x, weight = x.float(), weight.float()
        if self.training:
            self._widen(x.detach())
        if not self.seen:
            return x, weight
        return torch.fake_quantize_per_tensor_affine(x, *self.quantization(), LOW, HIGH), rounded_weight(weight)

    @torch.no_grad()
    def _widen(self, x: Tensor) -> None:
        ends = widest(x.min().clamp_max(0), x.max().clamp_min(0))  # of the whole batch, even if processes share it
        for kept, found in zip((self.low, self.high), ends, strict=True):
            kept.copy_(torch.where(self.seen > 0, _MEMORY * kept + (1 - _MEMORY) * found, found))
        self.seen.fill_(1)


def rounds(network: nn.Module) -> bool:
    """Return whether a network trains with rounded weights and inputs."""
    return any(isinstance(layer, Rounded) for layer in network.modules())


@contextmanager
def fixed_ranges(network: nn.Module) -> Iterator[None]:
    """Keep the ranges of inputs within the block, in which a network runs in training mode."""
    layers = [layer for layer in network.modules() if isinstance(layer, Rounded)]
    with modes_kept(layers):
        for layer in layers:
            layer.training = False
        yield


@torch.no_grad()
def with_fixed_rounding(network: nn.Module) -> nn.Module:
    """Return a copy with rounded weights that does not round inputs; the network itself if it never rounds.

    The copy is a float32 program without branches.
    """
    if not rounds(network):
        return network
    network = copy.deepcopy(network)
    for layer in network.modules():
        if isinstance(layer, Rounded):
            plain = cast(nn.Conv2d, layer)
            if layer.seen:
                plain.weight.copy_(rounded_weight(plain.weight.float()))  # torch rounds no float16
            for name in ("low", "high", "seen"):
                delattr(layer, name)
            kind: Any = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
            layer.__class__ = kind
    return network


class _Conv2d(Rounded, nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x, weight = self.rounded(x, self.weight)
            if leaves_out(self):
                return F.conv2d(every(x, self), weight, self.bias)
            return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class _Linear(Rounded, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(*self.rounded(x, self.weight), self.bias)


def fake_int8(network: nn.Module, channels: int, image_size: int) -> nn.Module:
    """Return a copy with folded BatchNorm layers whose convolutions and linear layers round.

    Raises: ValueError if there is no such layer.
    """
    views = noise(4, channels, image_size).split(2)
    network = copy.deepcopy(folded(network.eval(), {}, views)).requires_grad_(True)
    layers = dict(network.named_modules())
    for path, layer in layers.items():
        if isinstance(layer, FoldedNorm):
            network.set_submodule(path, nn.Identity())
        elif path and takes_int8(layer):
            Rounded.of(cast(nn.Conv2d, layer))
    if not rounds(network):
        raise ValueError("it has no convolution or linear layer that int8 could take")
    return network
