"""Files and raw arrays -> uint8 pixels of one size: shorter side resized with antialiasing, center crop or window."""

import io
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from dfkd.data.images.frame import ENCODED_ABOVE, WHOLE, Frame, Window, framed, margin, resized, windowed
from dfkd.data.readers.reader import Unreadable

if TYPE_CHECKING:
    from PIL.Image import Image

STORED_QUALITY = 90
"""Of JPEG files that are written at a working size."""
_GRAY = ("1", "L")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM")
"""Pillow knows many more by their content; of these one starts another program (EPS), and all are more to attack."""
_ORIENTATION = 0x0112
_FINER = 1.5
"""How much finer than a window's pixels those of its file are at the least. What the DCT scales is softer."""
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")


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

    image, shape, largest = _load(item, needed, bits)
    wanted = "L" if channels == 1 else "RGB"
    if image.mode != wanted:
        image = image.convert(wanted)
    if not small:
        pixels = np.array(image).reshape(*image.size[::-1], channels)
        of_frame = framed(pixels[None], size, frame)[0] if window is None else windowed(pixels, size, frame, window)
        return Decoded(of_frame, shape, largest)
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

    image, (height, width, _), _ = _load(data, lambda width, height: (2 * side,) * 2, bits)
    if min(height, width) <= side:
        return data
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


def _load(
    item: object, needed: Callable[[int, int], tuple[int, int]], bits: int | None
) -> tuple["Image", tuple[int, int, int], int | None]:
    """The image in mode L or RGB (or one that converts to them), upright, without alpha; the shape it had, and of

    16 bits the largest value. `needed` gives the least width and height to which a JPEG file is decoded.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(item, Unreadable):
        raise item
    if not isinstance(item, bytes | Image.Image):
        raise Unreadable(f"is a {type(item).__name__}, not an image")
    try:
        image = _opened(item) if isinstance(item, bytes) else item
        width, height = image.size
        if width * height > (Image.MAX_IMAGE_PIXELS or width * height):
            raise Unreadable(f"{width}x{height} pixels: above the limit against decompression bombs")
        deep = image.mode in ("RGB", "RGBA") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
        if deep and bits is not None:
            raise Unreadable("is color of 16 bits, of which only the upper 8 are read: write it with 8 bits")
        own = _own_bits(image)
        image.draft(None, _as_stored(image, needed))  # JPEG alone
        image.load()
        upright = _upright(image)
        if upright.size != image.size and image.size[0] != image.size[1]:
            width, height = height, width
        unsaid = deep or (own is None and upright.mode.startswith("I"))
        largest = int(np.asarray(upright).max()) if unsaid else None
        return *_flat(upright, (height, width), own or bits or 16), 256 * largest + 255 if largest and deep else largest
    except Unreadable:
        raise
    except UnidentifiedImageError:  # its own text holds a memory address
        raise Unreadable("is not a PNG, JPEG, WebP, BMP, GIF, TIFF or PPM image") from None
    except Exception as error:  # broken files make Pillow raise nearly anything
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def _opened(data: bytes) -> "Image":
    """The image of a file's bytes, its pixels not yet read; of a PNG without what lies beside them, if that is broken.

    Pillow refuses a PNG for a wrong checksum or more than a megabyte of text or color profile, too.
    """
    from PIL import Image, UnidentifiedImageError

    with warnings.catch_warnings():  # of a bomb, which is refused later
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)  # of a broken EXIF block, which is left out
        try:
            return Image.open(io.BytesIO(data), formats=_FORMATS)
        except (UnidentifiedImageError, ValueError, SyntaxError):
            if not data.startswith(_PNG):
                raise
        return Image.open(io.BytesIO(_pixels_of_png(data)), formats=_FORMATS)


def _pixels_of_png(data: bytes) -> bytes:
    """A PNG file without its metadata: the chunks that decide its pixels and how it is turned, as they are."""
    kept, at = [_PNG], len(_PNG)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] in _PNG_CHUNKS:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _as_stored(image: "Image", needed: Callable[[int, int], tuple[int, int]]) -> tuple[int, int]:
    """The width and height that are needed of an image that is turned once its pixels are read."""
    width, height = image.size
    least = needed(width, height)
    if image.format != "JPEG" or least[0] == least[1]:
        return least
    try:
        turned = image.getexif().get(_ORIENTATION, 1) > 4
    except Exception:  # as in `_upright`
        turned = False
    return needed(height, width)[::-1] if turned else least


def _upright(image: "Image") -> "Image":
    """`image` turned as its EXIF block says; as it is stored where that block is broken."""
    from PIL import ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises nearly anything for a broken block; the pixels are whole
        return image


def _own_bits(image: "Image") -> int | None:
    """The bits in use of 16, where the format says so."""
    if image.format == "PPM":  # Pillow scales to 16
        return 16
    own = image.tag_v2.get(258) if image.format == "TIFF" and hasattr(image, "tag_v2") else None  # BitsPerSample
    return 12 if own == (12,) else None


def _flat(image: "Image", extent: tuple[int, int], bits: int) -> tuple["Image", tuple[int, int, int]]:
    """`image` without alpha and 16-bit pixels, and its shape."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits of gray: PNG and TIFF say I;16, PGM says I
        values = np.asarray(image).clip(0, 2**bits - 1).astype(np.uint16)
        image = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    if image.mode == "F":
        raise Unreadable("has floating-point pixels, whose range nobody knows")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB"), (*extent, 4)
    return image, (*extent, 1 if image.mode in _GRAY else 3)
