"""Class count, input channels and image size of a network: where its constructor and its weights state them."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from dfkd.models import DEFAULT_IMAGE_SIZE
from dfkd.models.state import tensors_of
from dfkd.system.components import Component

SIZE = "image_size"
"""The constructor's parameter for the side of the images, if a network is built for one size."""


def count_keys(model: Component) -> tuple[str | None, str | None]:
    """Return the constructor's parameters for class count and input channels; None for a missing one."""
    parameters = model.parameters
    taken = {parameter.name for parameter in parameters} | model.options.keys()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        # **kwargs hides parameters; those of these two packages are known
        passed_on = {"torchvision": {"num_classes"}, "timm": {"num_classes", "in_chans"}}
        taken |= passed_on.get(model.target.__module__.partition(".")[0], set())
    return (
        next((key for key in ("num_classes",) if key in taken), None),
        next((key for key in ("in_channels", "in_chans") if key in taken), None),
    )


def counts_in(
    state: Mapping[str, Any], module: nn.Module, class_key: str | None, channel_key: str | None
) -> dict[str, int]:
    """Return the class and channel counts in which the weights differ from the module, by parameter name."""
    layers = list(module.named_modules())
    convolutions = [name for name, layer in layers if isinstance(layer, nn.Conv2d)]
    classifiers = [name for name, layer in layers if isinstance(layer, nn.Linear)] or convolutions
    own, counts = tensors_of(module), {}
    for key, names, dimension in ((class_key, classifiers[-1:], 0), (channel_key, convolutions[:1], 1)):
        for weight in (f"{name}.weight" for name in names):
            if key and weight in state and state[weight].ndim == own[weight].ndim:
                count = state[weight].shape[dimension]
                if count != own[weight].shape[dimension]:
                    counts[key] = count
    return counts


def made_for(target: Callable[..., Any], options: Mapping[str, Any], module: nn.Module) -> int | None:
    """Return the image side in pixels that an architecture is made for, or None."""
    told = options.get(SIZE, options.get("img_size"))
    if isinstance(told, int):
        return told
    package = target.__module__
    if package.startswith("dfkd.models"):
        return DEFAULT_IMAGE_SIZE
    if package.startswith("torchvision.models"):
        return 224
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)  # timm's
    size = config.get("input_size") if isinstance(config, Mapping) else None
    last = size[-1] if isinstance(size, (tuple, list)) and size else None
    return last if isinstance(last, int) else None
