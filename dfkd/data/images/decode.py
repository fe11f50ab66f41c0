"""Conversion of files and raw arrays to uint8 pixels of one size, with antialiasing and a center crop or window."""

import io
import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from dfkd.data.images.frame import ENCODED_ABOVE, WHOLE, Frame, Window, framed, margin, resized, windowed
from dfkd.data.images.load import load, picture_of

STORED_QUALITY = 90
"""Quality of JPEG files that are written at a working size."""
_LONGEST = 65_500
"""Longest side in pixels of a JPEG file that libjpeg writes."""
_FINER = 1.5
"""Least ratio of a decoded JPEG file's resolution to that of a window.

JPEG files that the DCT scales to a lower resolution are softer.
"""


@dataclass(frozen=True)
class Decoded:
    """Decoded image at the pool's size, with its original height, width and channels (4: with alpha).

    `largest` is the largest value of a 16-bit image whose file does not state the range. The lower 8 bits of 16-bit
    color are unknown.
    """

    pixels: UInt8[np.ndarray, "size size channels"]
    shape: tuple[int, int, int]
    largest: int | None = None


BatchDecoder = Callable[..., list[Decoded | None]]
"""Decoder of several files, such as `dfkd.data.images.nvjpeg.Nvjpeg`.

It takes the files, size, channels, frame and a list of windows. It returns None for a file that it leaves to `decode`.
"""


def decode(
    item: object,
    size: int,
    channels: int,
    bits: int | None = None,
    frame: Frame = WHOLE,
    window: Window | None = None,
) -> Decoded:
    """Return a file's bytes, or a PIL image, decoded to [size, size, channels]: the crop of `frame`, or a `window`.

    JPEG files are decoded at 1/2, 1/4 or 1/8 of their size. The decoded size is at least twice `size`, or 1.5 times for
    a window. The format follows from the content, not from the name. EXIF orientation is applied. Transparent pixels
    are laid over white. Of 16-bit gray, the upper 8 of the `bits` in use are taken. Of an animation, the first frame is
    taken.
    Raises: Unreadable for images that Pillow cannot read to their end, 16-bit color with `bits`, and images above
    Pillow's limit against decompression bombs.
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
        # Resizing only the crop's box gives the same pixels, and saves memory for a strip of 50,000 x 1 pixels.
        new_width, new_height = resized(width, height, size)
        left, top = margin(new_width, size), margin(new_height, size)
        sx, sy = width / new_width, height / new_height
        box = (left * sx, top * sy, min((left + size) * sx, width), min((top + size) * sy, height))
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return Decoded(np.asarray(image).reshape(size, size, channels), shape, largest)


def fit(
    pixels: UInt8[np.ndarray, "batch height width stored"], size: int, channels: int, frame: Frame = WHOLE
) -> UInt8[np.ndarray, "batch size size channels"]:
    """Return a batch of raw pixels at another size and channel count, by the rules of `decode`."""
    if pixels.shape[3] == 4:
        alpha = pixels[..., 3:].astype(np.uint16)
        pixels = ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    if pixels.shape[3] == 3 and channels == 1:  # ITU-R 601 luma in 16-bit fixed point, as in Pillow
        red, green, blue = (pixels[..., i].astype(np.uint32) for i in range(3))
        pixels = ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)[..., None]
    if pixels.shape[1:3] != (size, size) or frame != WHOLE:
        pixels = framed(np.ascontiguousarray(pixels), size, frame)
    return np.repeat(pixels, channels, axis=3) if pixels.shape[3] < channels else pixels


def encode_png(item: object) -> bytes:
    """Return a PIL image, or pixels [height, width, channels], as a PNG file."""
    from PIL import Image

    if isinstance(item, np.ndarray):
        item = picture_of(item)
    assert isinstance(item, Image.Image), type(item)
    file = io.BytesIO()
    item.save(file, "PNG")
    return file.getvalue()


def reencoded(data: bytes, side: int, bits: int | None = None) -> bytes:
    """Return a file as an upright JPEG file whose shorter side has `side` pixels.

    Smaller files, and strips that no JPEG file can hold, stay unchanged.
    Raises: Unreadable as `decode`.
    """
    from PIL import Image

    loaded = load(data, lambda width, height: (2 * side,) * 2, bits, arrays=False)
    image = loaded.picture()
    size = resized(*image.size, side)
    if min(loaded.shape[:2]) <= side or max(size) > _LONGEST:
        return data
    image = image if image.mode in ("L", "RGB") else image.convert("RGB")
    file = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=STORED_QUALITY)
    return file.getvalue()


def processors() -> int:
    """Return the number of processors that this process may use, for one decoding thread each.

    Jobs on a cluster often get a part of a machine's processors.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def conversions(shape: tuple[int, int, int], size: int, channels: int, frame: Frame = WHOLE) -> dict[str, str]:
    """Return how an image of `shape` is converted to [size, size, channels], as a sentence per kind of conversion."""
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
