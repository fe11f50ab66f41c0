"""Networks of lower precision: float16, or int8 with scales that are calibrated on images."""

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.models.fake_int8 import HIGH, LOW, Rounded, takes_int8, weight_scales
from dfkd.models.features.fold_batchnorm import folded
from dfkd.models.features.taps import run_network
from dfkd.system.errors import RequestError


class Half(nn.Module):
    """A network that computes in float16, with a float32 input and float32 logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        logits: Tensor = self.network(images.half())
        return logits.float()


class Int8(nn.Module):
    """A convolution or linear layer with int8 weights, one scale per output channel, and an input rounded to 8 bits.

    The operators are those of PyTorch's quantization. In ONNX they are pairs of QuantizeLinear and DequantizeLinear. A
    runtime with int8 kernels computes these pairs in int8.
    """

    def __init__(self, layer: nn.Module, scale: float, zero: int) -> None:
        super().__init__()
        import torch.ao.quantization.fx._decomposed  # the import registers the operators

        given = cast(nn.Conv2d, layer)
        weight = given.weight.detach()
        scales = weight_scales(weight)
        rounded = (weight / scales.view(-1, *[1] * (weight.ndim - 1))).round()
        self.register_buffer("weight", rounded.clamp(-HIGH, HIGH).to(torch.int8))
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.int64))
        self.register_buffer("bias", None if given.bias is None else given.bias.detach().clone())
        self._scale, self._zero = scale, zero
        self._geometry: Any = None
        if isinstance(layer, nn.Conv2d):
            self._geometry = layer.stride, layer.padding, layer.dilation, layer.groups

    def forward(self, images: Tensor) -> Tensor:
        """Compute the layer's output in float32."""
        ops = torch.ops.quantized_decomposed
        given = (self._scale, self._zero, LOW, HIGH, torch.int8)
        images = ops.dequantize_per_tensor(ops.quantize_per_tensor(images, *given), *given)
        weight = ops.dequantize_per_channel(self.weight, self.scales, self.zeros, 0, -HIGH, HIGH, torch.int8)
        if self._geometry is None:
            return F.linear(images, weight, cast(Tensor, self.bias))
        return F.conv2d(images, weight, cast(Tensor, self.bias), *self._geometry)


def to_int8(network: nn.Module, views: Sequence[Float[Tensor, "_ channels height width"]], spec: str) -> nn.Module:
    """Return a copy with folded BatchNorm layers whose convolutions and linear layers compute in int8.

    `views` are at least two batches of the network's input. PyTorch's histogram observer finds the scale of each
    layer's input from all of them. Other layers, and those that do not run as modules, stay in float32. Layers that
    were trained to round keep their scale.
    Raises: RequestError if there is no layer to convert.
    """
    network = copy.deepcopy(folded(network.eval(), {}, views[:2]))
    ranges = _trained_ranges(network) | _input_ranges(network, views)
    for name, (scale, zero) in ranges.items():
        network.set_submodule(name, Int8(network.get_submodule(name), scale, zero))
    if not ranges:
        raise RequestError(f"model {spec!r} has no convolution or linear layer that int8 could take; leave out --dtype")
    return network.eval()


def _trained_ranges(network: nn.Module) -> dict[str, tuple[float, int]]:
    """Return scale and zero point of every layer that was trained to round."""
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, Rounded) and layer.seen}
    found = {name: layer.quantization() for name, layer in layers.items()}
    return {name: (float(scale), int(zero)) for name, (scale, zero) in found.items()}


@torch.no_grad()
def _input_ranges(network: nn.Module, views: Sequence[Tensor]) -> dict[str, tuple[float, int]]:
    """Return scale and zero point for the input of every layer that runs as a module."""
    from torch.ao.quantization.observer import HistogramObserver

    observers: dict[str, HistogramObserver] = {}

    def observe(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if name not in observers:
                observers[name] = HistogramObserver(dtype=torch.qint8, quant_min=LOW, quant_max=HIGH)
            observers[name](inputs[0].detach())

        return hook

    with ExitStack() as hooks:
        for name, layer in network.named_modules():
            if name and takes_int8(layer):
                hooks.enter_context(layer.register_forward_pre_hook(observe(name)))
        for view in views:
            run_network(network, view)
    found = {}
    for name, observer in observers.items():
        scale, zero = observer.calculate_qparams()
        found[name] = float(scale), int(zero)
    return found
