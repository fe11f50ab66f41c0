"""Groups of layers whose channels belong together: channel c of one layer is channel c of all layers of the group."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from dfkd.models.features.taps import network_code, run_network

Plain = nn.Conv2d | nn.Linear
Port = tuple[str, int]
"""A layer's name, and 0 for its outputs or 1 for its inputs. A layer that is not `plain` has only 0."""

_BITS = 2
"""Bits of the channel numbers that are told apart in one pass. Each takes two images."""


def plain(layer: nn.Module | None) -> TypeGuard[Plain]:
    """Return whether every output is a weighted sum over all channels; a convolution has to pad with zeros."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


@dataclass
class Group:
    """Ports whose channels are added, multiplied or passed on one by one."""

    ports: set[Port]
    mixed: bool = False
    """Whether channels are also mixed, padded, concatenated or reordered between some of the ports."""


def channel_groups(network: nn.Module, channels: int, size: int) -> list[Group]:
    """Return the groups of a network; none if parts of it cannot be followed.

    This is so where parameters are used outside of the layers that hold them, or where a layer's input has other rows
    than one per image.

    A copy of the network runs with random positive parameters on random images. Random numbers replace the outputs of
    `plain` layers. So the gradient of a layer's input tells which outputs reach it without another plain layer between,
    and whether each channel depends on the channel of the same number only.

    Args:
        network: A classifier.
        channels: Number of channels of an image.
        size: Number of pixels of an image's side.

    Raises: RequestError if the network cannot be copied or run.
    """
    with network_code(network):
        network = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
    layers = {name: layer for name, layer in network.named_modules() if _own(layer)}
    if any(_own(part) for layer in layers.values() for part in layer.modules() if part is not layer):
        return []
    random = torch.Generator().manual_seed(0)  # not the global generator, which holds the student's seed
    widest = 1
    for layer in layers.values():
        for name, value in _own(layer).items():
            if name == "running_mean":
                value.zero_()
            elif value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=random) + 0.5)
            widest = max([widest, *value.shape[:2]])
    ports = {(name, side) for name, layer in layers.items() for side in range(1 + plain(layer))}
    groups = {port: Group({port}) for port in ports}
    for bits in torch.arange(max(1, (widest - 1).bit_length())).split(_BITS):
        seen = _Pass(layers, random)
        with torch.enable_grad(), seen.watched():
            run_network(network, torch.rand(2 * len(bits), channels, size, size, generator=random))
        if {name for name, _ in seen.inputs} != layers.keys() or not seen.per_image(2 * len(bits)):
            return []
        seen.join(groups, bits)
    return list({id(group): group for group in groups.values()}.values())


class _Pass:
    """Inputs of all layers in one forward pass, and the random numbers in place of the outputs of plain layers."""

    def __init__(self, layers: Mapping[str, nn.Module], random: torch.Generator) -> None:
        self._layers, self._random = layers, random
        self.inputs: list[tuple[str, Any]] = []
        self._outputs: list[tuple[str, Tensor]] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Record inputs and replace outputs within the block."""
        with ExitStack() as hooks:
            for name, layer in self._layers.items():
                hooks.enter_context(layer.register_forward_pre_hook(self._taker(name), with_kwargs=True))
                if plain(layer):
                    hooks.enter_context(layer.register_forward_hook(self._replacer(name)))
            yield

    def per_image(self, images: int) -> bool:
        """Return whether all inputs and outputs are tensors with one row per image."""
        return all(isinstance(x, Tensor) and len(x) == images for _, x in [*self.inputs, *self._outputs])

    def join(self, groups: dict[Port, Group], bits: Int[Tensor, " bits"]) -> None:
        """Join the groups of ports that depend on each other."""
        outputs = [output for _, output in self._outputs]
        for name, x in self.inputs:
            port = (name, int(plain(self._layers[name])))
            if not x.requires_grad or not outputs:  # it depends on the image, or in a way that no gradient tells
                groups[port].mixed = True
                continue
            x = self._rows(name, x)
            mask = _masks(bits, x.shape[1])
            gradients = torch.autograd.grad((x * mask[:, :, None]).sum(), outputs, retain_graph=True, allow_unused=True)
            for (source, _), gradient in zip(self._outputs, gradients, strict=True):
                if gradient is not None:
                    gradient = self._rows(source, gradient)
                    alone = gradient.shape[1] == x.shape[1] and not gradient[~mask].any()
                    _join(groups, port, (source, 0), mixed=not alone)

    def _taker(self, name: str) -> Callable[..., None]:
        def take(_: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            self.inputs.append((name, next(iter([*inputs, *named.values()]))))

        return take

    def _replacer(self, name: str) -> Callable[..., Tensor]:
        def replace(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            numbers = torch.rand(output.shape, generator=self._random).requires_grad_()
            self._outputs.append((name, numbers))
            return numbers.clone()  # an activation may change it in place

        return replace

    def _rows(self, name: str, x: Tensor) -> Tensor:
        """Return values as [images, channels, positions]."""
        last = isinstance(self._layers[name], (nn.Linear, nn.LayerNorm))
        return (x.movedim(-1, 1) if last else x).flatten(2) if x.ndim > 2 else x[:, :, None]


def _masks(bits: Int[Tensor, " bits"], width: int) -> Bool[Tensor, "images width"]:
    """Return for each image which channels to ask for: those whose number has the bit, and those without it."""
    has = (torch.arange(width) >> bits[:, None] & 1).bool()
    return torch.cat([has, ~has])


def _join(groups: dict[Port, Group], one: Port, other: Port, *, mixed: bool) -> None:
    group, joined = groups[one], groups[other]
    if group is not joined:
        group.ports |= joined.ports
        group.mixed |= joined.mixed
        groups.update(dict.fromkeys(joined.ports, group))
    group.mixed |= mixed


def _own(layer: nn.Module) -> dict[str, Tensor]:
    return {**dict(layer.named_parameters(recurse=False)), **dict(layer.named_buffers(recurse=False))}
