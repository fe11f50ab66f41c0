"""Normalization of pixels to a model's input. The student inherits the teacher's normalization."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dfkd.system.console import say
from dfkd.system.errors import RequestError, nearest

NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "none": ((0.0,), (1.0,)),
}


@dataclass(frozen=True)
class Preprocess:
    """Mean and standard deviation of pixels in [0, 1], per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalized(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return images in [0, 1] normalized as `__call__` normalizes their pixels, with gradients."""
        mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std

    def __call__(
        self, images: UInt8[Tensor, "batch height width channels"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return pixels as a normalized float32 batch [batch, channels, height, width].

        The view of NHWC memory as NCHW is channels-last without a copy.
        """
        mean = torch.tensor(self.mean, device=images.device) * 255
        std = torch.tensor(self.std, device=images.device) * 255
        return ((images - mean) / std).permute(0, 3, 1, 2)


def parse_normalize(text: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation for `channels` channels from `imagenet`, `cifar10`, `none` or `m,m,m/s,s,s`.

    One given value serves every channel. For a gray teacher, named values are averaged over the three colors. Means
    above 1 or deviations above 10 are for pixels in [0, 255]. All values are then divided by 255, with a note.
    Raises: RequestError as `given_statistics`, and for a wrong number of values.
    """
    mean, std = given_statistics(text)
    if channels == 1 and text in NORMALIZATIONS:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    if len(mean) not in (1, channels) or len(std) not in (1, channels):
        raise RequestError(f"--normalize {text!r} has {len(mean)}/{len(std)} values; the model has {channels} channels")
    if max(mean) > 1 or min(std) > 10:
        mean, std = (tuple(value / 255 for value in values) for values in (mean, std))
        say(f"note: --normalize {text} is for pixels in [0, 255]; its values are divided by 255")
    return mean * (channels // len(mean)), std * (channels // len(std))


def given_statistics(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation as they are written, for any number of channels.

    Raises: RequestError for an unknown name, a text that is not a number, or a deviation that is not positive.
    """
    if text in NORMALIZATIONS:
        mean, std = NORMALIZATIONS[text]
    elif "/" in text:
        try:
            mean, std = (tuple(float(v) for v in side.split(",")) for side in text.split("/"))
        except ValueError:
            raise RequestError(f"--normalize {text!r} is not m,m,m/s,s,s (numbers for pixels in [0, 1])") from None
    else:
        hint = nearest(text, NORMALIZATIONS)
        raise RequestError(f"--normalize {text!r} is unknown{hint} (or give numbers: m,m,m/s,s,s)")
    if not all(map(math.isfinite, mean + std)):
        raise RequestError(f"--normalize {text!r} has a number that is not finite")
    if min(std) <= 0:
        raise RequestError(f"--normalize {text!r} has a deviation that is not above 0")
    return mean, std
