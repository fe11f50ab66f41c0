"""Square crops of photographs of any size: the shorter side resized and the center cropped, or a random window."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from dfkd.config.stages.shared import Interpolation

ENCODED_ABOVE = 64
"""Largest side in pixels at which a selection holds raw pixels. Larger images are treated as photographs."""
PHOTO_FORMAT = 1
"""Version of the decoding and resizing of photographs. Pixels of another version differ by a level or two."""
_STRIP = 16
"""Aspect ratio above which the ends of an image are cut off before resizing.

A strip 1 pixel wide would otherwise be resized to an enormous image.
"""


@dataclass(frozen=True)
class Frame:
    """Part of a photograph that a model sees.

    The shorter side is resized to size / `crop_pct` pixels, and the center is cropped.
    """

    crop_pct: float = 1.0
    interpolation: Interpolation = "bilinear"

    def resized(self, size: int) -> int:
        """Return the shorter side in pixels before the crop, for an input of `size` pixels."""
        return math.floor(size / self.crop_pct + 1e-6)  # 224 / (224 / 232) is slightly less than 232

    def describe(self) -> dict[str, Any]:
        """Return the fields that differ from a plain resize of the shorter side to the input's size, as JSON."""
        return {name: value for name, value in vars(self).items() if value != getattr(WHOLE, name)}


WHOLE = Frame()


@dataclass(frozen=True)
class Window:
    """Random window of an image, given by four numbers from 0 to 1. `area` is the smallest fraction of the image."""

    area: float
    share: float
    factor: float
    down: float
    right: float

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return top, left, height and width of the window in an image, in pixels.

        The fraction of the image's area is uniform from `area` to 1. The ratio width / height is from 3/4 to 4/3 (Going
        deeper with convolutions, 2014, https://arxiv.org/abs/1409.4842), uniform in the logarithm as in torchvision.
        Parts outside the image are cut off.
        """
        pixels = (self.area + (1 - self.area) * self.share) * height * width
        factor = math.exp(math.log(4 / 3) * (2 * self.factor - 1))
        rows = min(max(1, round(math.sqrt(pixels / factor))), height)
        columns = min(max(1, round(math.sqrt(pixels * factor))), width)
        return int(self.down * (height - rows + 1)), int(self.right * (width - columns + 1)), rows, columns


@dataclass(frozen=True)
class Crops:
    """Random windows of stored images, which depend only on the seed and the position in the order of images."""

    area: float
    seed: int

    def at(self, position: int, count: int) -> list[Window]:
        """Return the windows of `count` positions from `position` on. Philox gives four numbers per counter value."""
        raw = np.random.Philox(counter=position, key=self.seed).random_raw(4 * count)
        numbers = (raw >> np.uint64(11)).reshape(count, 4) * 2.0**-53
        return [Window(self.area, *row) for row in numbers.tolist()]


def framed(
    pixels: UInt8[np.ndarray, "batch height width channels"], size: int, frame: Frame
) -> UInt8[np.ndarray, "batch size size channels"]:
    """Return images of one shape, resized with antialiasing and center-cropped as by torchvision's transforms."""
    height, width = pixels.shape[1:3]
    return _scaled(pixels, framed_view(height, width, size, frame), frame.interpolation)


def windowed(
    pixels: UInt8[np.ndarray, "height width channels"], size: int, frame: Frame, window: Window
) -> UInt8[np.ndarray, "size size channels"]:
    """Return a window of an image, resized with antialiasing."""
    height, width = pixels.shape[:2]
    return _scaled(pixels[None], windowed_view(height, width, size, window), frame.interpolation)[0]


class View(NamedTuple):
    """How a view is made of an image: a part of it is resized, and a part of that is kept."""

    rows: slice
    columns: slice
    height: int
    width: int
    kept_rows: slice = slice(None)
    kept_columns: slice = slice(None)


def framed_view(height: int, width: int, size: int, frame: Frame) -> View:
    """Return how `framed` resizes and crops an image."""
    most = _STRIP * min(height, width)
    rows, columns = (_center(length, min(length, most)) for length in (height, width))
    new_width, new_height = resized(min(width, most), min(height, most), frame.resized(size))
    top, left = margin(new_height, size), margin(new_width, size)
    return View(rows, columns, new_height, new_width, slice(top, top + size), slice(left, left + size))


def windowed_view(height: int, width: int, size: int, window: Window) -> View:
    """Return how `windowed` resizes a part of an image."""
    top, left, rows, columns = window.box(height, width)
    return View(slice(top, top + rows), slice(left, left + columns), size, size)


def _center(length: int, kept: int) -> slice:
    start = (length - kept) // 2
    return slice(start, start + kept)


def resized(width: int, height: int, size: int) -> tuple[int, int]:
    """Return width and height after the shorter side is resized to `size`.

    The longer side is rounded down, as by torchvision's Resize.
    """
    short = min(width, height)
    return size * width // short, size * height // short


def margin(length: int, size: int) -> int:
    """Return the number of pixels before a centered crop, rounded as by torchvision's CenterCrop."""
    return round((length - size) / 2)


def _scaled(
    pixels: UInt8[np.ndarray, "batch height width channels"], view: View, mode: str
) -> UInt8[np.ndarray, "batch new_height new_width channels"]:
    import torch  # where pixels are resized only: the reports read stored pixels
    from torch.nn.functional import interpolate

    pixels = pixels[:, view.rows, view.columns]
    # numpy gives a new first axis the stride 0, and torch then resizes planes, which takes twice as long
    batch = torch.from_numpy(pixels[0])[None] if len(pixels) == 1 else torch.from_numpy(pixels)
    planes = batch.permute(0, 3, 1, 2)
    if planes.shape[2:] != (view.height, view.width):
        planes = interpolate(planes, (view.height, view.width), mode=mode, antialias=True)
    return planes[:, :, view.kept_rows, view.kept_columns].permute(0, 2, 3, 1).contiguous().numpy()
