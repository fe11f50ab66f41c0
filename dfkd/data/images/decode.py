"""Files and raw arrays -> uint8 pixels of one size: shorter side resized with antialiasing, center crop or window."""

import io
import math
import os
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from dfkd.data.images.frame import ENCODED_ABOVE, WHOLE, Frame, Window, framed, margin, resized, windowed
from dfkd.data.images.load import load

STORED_QUALITY = 90
"""Of JPEG files that are written at a working size."""
_FINER = 1.5
"""How much finer than a window's pixels those of its file are at the least. What the DCT scales is softer."""


@dataclass(frozen=True)
class Decoded:
    """One image at the pool's size, and the height, width and channels (4: with alpha) that it had.

    `largest` is the largest value of an image that has 16 bits and does not say its range; of color the lower 8 bits
    are not known.
    """

    pixels: UInt8[np.ndarray, "size size channels"]
    shape: tuple[int, int, int]
    largest: int | None = None


def decode(
    item: object,
    size: int,
    channels: int,
    bits: int | None = None,
    frame: Frame = WHOLE,
    window: Window | None = None,
) -> Decoded:
    """Decode a file's bytes (or take a PIL image) to [size, size, channels]: what `frame` keeps, or a `window`.

    JPEG files are decoded at 1/2, 1/4 or 1/8: never below twice the size, of a window never below 1.5 times.
    The content decides the format, not the name. EXIF orientation is applied, alpha laid over white, 16-bit gray cut
    to its upper 8 bits (of `bits`, where a camera used so many), of an animation the first frame is taken.
    Raises: Unreadable for anything that Pillow cannot read to its end, for more pixels than its bomb limit, and for
    16-bit color with `bits`.
    """
    from PIL import Image

    small = size <= ENCODED_ABOVE and frame == WHOLE and window is None

    def needed(width: int, height: int) -> tuple[int, int]:
        if window is None:
            return (2 * frame.resized(size),) * 2
        _, _, rows, columns = window.box(height, width)
        return math.ceil(_FINER * size * width / columns), math.ceil(_FINER * size * height / rows)

    loaded = load(item, needed, bits)
    shape, largest = loaded.shape, loaded.largest
    if not small:
        pixels = loaded.pixels(channels)
        of_frame = framed(pixels[None], size, frame)[0] if window is None else windowed(pixels, size, frame, window)
        return Decoded(of_frame, shape, largest)
    image = loaded.picture_of(channels)
    width, height = image.size
    if (width, height) != (size, size):
        # Resizing only the box that the crop keeps is resizing all and cropping, also for a strip of 50,000 x 1 pixels.
        new_width, new_height = resized(width, height, size)
        left, top = margin(new_width, size), margin(new_height, size)
        sx, sy = width / new_width, height / new_height
        box = (left * sx, top * sy, min((left + size) * sx, width), min((top + size) * sy, height))
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return Decoded(np.asarray(image).reshape(size, size, channels), shape, largest)


def fit(
    pixels: UInt8[np.ndarray, "batch height width stored"], size: int, channels: int, frame: Frame = WHOLE
) -> UInt8[np.ndarray, "batch size size channels"]:
    """Raw pixels at another size and channel count, a batch at a time; the same rules as `decode`."""
    if pixels.shape[3] == 4:
        alpha = pixels[..., 3:].astype(np.uint16)
        pixels = ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    if pixels.shape[3] == 3 and channels == 1:  # ITU-R 601 luma in 16 bits of fraction, as Pillow computes it
        red, green, blue = (pixels[..., i].astype(np.uint32) for i in range(3))
        pixels = ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)[..., None]
    if pixels.shape[1:3] != (size, size) or frame != WHOLE:
        pixels = framed(np.ascontiguousarray(pixels), size, frame)
    return np.repeat(pixels, channels, axis=3) if pixels.shape[3] < channels else pixels


def encode_png(item: object) -> bytes:
    """A PIL image or [height, width, channels] pixels as a PNG file."""
    from PIL import Image

    if isinstance(item, np.ndarray):
        item = Image.fromarray(item[..., 0] if item.shape[2] == 1 else item)
    assert isinstance(item, Image.Image), type(item)
    file = io.BytesIO()
    item.save(file, "PNG")
    return file.getvalue()


def reencoded(data: bytes, side: int, bits: int | None = None) -> bytes:
    """A file as a JPEG file whose shorter side has `side` pixels, upright; one that is not larger stays as it is.

    Raises: Unreadable as `decode`.
    """
    from PIL import Image

    loaded = load(data, lambda width, height: (2 * side,) * 2, bits, arrays=False)
    if min(loaded.shape[:2]) <= side:
        return data
    image = loaded.picture()
    image = image if image.mode in ("L", "RGB") else image.convert("RGB")
    file = io.BytesIO()
    image.resize(resized(*image.size, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=STORED_QUALITY)
    return file.getvalue()


def processors() -> int:
    """How many this process may use, a thread to decode for each: a cluster's job often gets some of a machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def conversions(shape: tuple[int, int, int], size: int, channels: int, frame: Frame = WHOLE) -> dict[str, str]:
    """What happens to an image of `shape` on its way to [size, size, channels]: kind of conversion -> a sentence."""
    height, width, stored = shape
    found = {}
    if frame != WHOLE:
        how = f"resized to {frame.resized(size)} pixels (antialiased {frame.interpolation})"
        found["size"] = f"{width}x{height} images are {how} and cropped to {size}x{size}"
    elif (height, width) != (size, size):
        crop = "" if height == width else ", the center is kept"
        found["size"] = f"{width}x{height} images are resized to {size}x{size} (antialiased bilinear{crop})"
    if stored == 4:
        found["alpha"] = "transparent pixels are laid over white"
    if stored == 1 and channels == 3:
        found["channels"] = "gray is repeated over 3 channels"
    if stored != 1 and channels == 1:
        found["channels"] = "color is converted to gray (ITU-R 601 luma)"
    return found
