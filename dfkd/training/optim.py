"""Optimizer and learning rate. The rate is a function of the step, so that a resumed run needs no schedule state."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from dfkd.system.torch_optim import SGD, AdamW

SCHEDULE_WARMUP = {"onecycle": 0.3, "cosine": 0.05}
"""Share of the steps in which the learning rate rises, by schedule."""


def default_rate(
    kind: str, student: nn.Module, init: str = "none", trained: bool = False, photographs: bool = False
) -> float:
    """Return the default of the peak learning rate, chosen by benchmarks/quality/LOG.md.

    BatchNorm tolerates large steps. Without BatchNorm, SGD needs a small rate. So do layers that come from the teacher
    or are fitted to it, and a student that begins `trained`: their weights should last. On photographs, and for
    networks with depthwise convolutions, 0.4 gave losses that are not finite.
    """
    if kind == "adamw":
        small = 0.0001 if init == "classifier" else 0.0005
        return small if trained else 0.002
    if trained:
        return 0.02
    if not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in student.modules()):
        return 0.02
    return 0.1 if init != "none" or photographs or _has_depthwise(student) else 0.4


def _has_depthwise(network: nn.Module) -> bool:
    """Return whether a convolution has one input channel for each of its groups, as in MobileNet."""
    layers = (layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    return any(layer.groups == layer.in_channels > 1 for layer in layers)


def make_optimizer(modules: Iterable[nn.Module], kind: str, weight_decay: float) -> torch.optim.Optimizer:
    """Build SGD with Nesterov momentum 0.9, or AdamW. Vectors (biases, normalization) have no weight decay."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if kind == "sgd":
        optimizer = SGD(groups, lr=0.0, momentum=0.9, nesterov=True, fused=True)
        for p in parameters:  # the initial value; the fused step fails if only some parameters have a buffer
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return optimizer
    return AdamW(groups, lr=0.0, fused=True)


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Return the rate of `step` (from 0): up a half cosine from peak/25 over the share `warmup`, then down to 0.

    The shape is that of torch's OneCycleLR, after the 1cycle policy (https://arxiv.org/abs/1708.07120), without its
    momentum cycle.
    """
    rise = warmup * steps
    if step < rise:
        low = peak / 25
        return low + (peak - low) * (1 - math.cos(math.pi * step / rise)) / 2
    return peak * (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
