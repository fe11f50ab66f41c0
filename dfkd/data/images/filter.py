"""Linear filter for the images of a pool."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import conv2d, pad

from dfkd.data.images.filter_record import read_arrays

_AT_ONCE = 256


def filtered(
    planes: Float[Tensor, "batch channels height width"],
    kernel: Float[Tensor, "channels channels size size"],
    bias: Float[Tensor, " channels"],
) -> Float[Tensor, "batch channels height width"]:
    """Return images in [0, 1], convolved and clamped to [0, 1]. The padding replicates edge pixels."""
    reach = kernel.shape[-1] // 2
    return conv2d(pad(planes, (reach,) * 4, mode="replicate"), kernel, bias).clamp(0, 1)


@dataclass(frozen=True)
class Filter:
    """Linear filter of images: a convolution kernel of odd size over all channels, and a bias.

    The filter is called with uint8 images.
    """

    kernel: Float[Tensor, "channels channels size size"]
    """Weights as of a convolution layer."""
    bias: Float[Tensor, " channels"]
    """Bias for pixels in [0, 1]."""

    def __call__(
        self, pixels: UInt8[np.ndarray, "batch height width channels"]
    ) -> UInt8[np.ndarray, "batch height width channels"]:
        """Filter images, in several parts to save memory.

        Args:
            pixels: uint8 [batch, height, width, channels].

        Returns:
            Filtered pixels of the same shape, rounded to uint8.
        """
        out = np.empty_like(pixels)
        for start in range(0, len(pixels), _AT_ONCE):
            planes = torch.from_numpy(pixels[start : start + _AT_ONCE]).permute(0, 3, 1, 2) / 255
            rounded = filtered(planes, self.kernel, self.bias).mul_(255).round_().byte()
            out[start : start + _AT_ONCE] = rounded.permute(0, 2, 3, 1).numpy()
        return out

    def describe(self) -> dict[str, Any]:
        """Return the filter as a JSON value.

        Returns:
            `kernel` and `bias` as lists.
        """
        return {"kernel": self.kernel.tolist(), "bias": self.bias.tolist()}


def read_filter(described: Mapping[str, Any], channels: int) -> Filter | None:
    """Return the filter from the output of `Filter.describe`, or None if there is none.

    Raises: ValueError, KeyError or TypeError if the value is damaged.
    """
    found = read_arrays(described, channels)
    return None if found is None else Filter(*map(torch.from_numpy, found))
