"""Files and raw arrays -> uint8 pixels of one size: shorter side resized (antialiased bilinear), center crop."""

import io
import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import UInt8
from torch.nn.functional import interpolate

from dfkd.data.readers.reader import Unreadable

if TYPE_CHECKING:
    from PIL.Image import Image

_GRAY = ("1", "L")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM")
"""Pillow knows many more by their content; of these one starts another program (EPS), and all are more to attack."""
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


def decode(item: object, size: int, channels: int, bits: int | None = None) -> Decoded:
    """Decode a file's bytes (or take a PIL image) to [size, size, channels].

    The content decides the format, not the name. EXIF orientation is applied, alpha laid over white, 16-bit gray cut
    to its upper 8 bits (of `bits`, where a camera used so many), of an animation the first frame is taken.
    Raises: Unreadable for anything that Pillow cannot read to its end, for more pixels than its bomb limit, and for
    16-bit color with `bits`.
    """
    from PIL import Image

    image, shape, largest = _load(item, size, bits)
    height, width = shape[:2]
    wanted = "L" if channels == 1 else "RGB"
    if image.mode != wanted:
        image = image.convert(wanted)
    width, height = image.size
    if (width, height) != (size, size):
        # Resizing only the box that the crop keeps is resizing all and cropping, also for a strip of 50,000 x 1 pixels.
        new_width, new_height = _resized(width, height, size)
        left, top = _margin(new_width, size), _margin(new_height, size)
        sx, sy = width / new_width, height / new_height
        box = (left * sx, top * sy, min((left + size) * sx, width), min((top + size) * sy, height))
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return Decoded(np.asarray(image).reshape(size, size, channels), shape, largest)


def fit(
    pixels: UInt8[np.ndarray, "batch height width stored"], size: int, channels: int
) -> UInt8[np.ndarray, "batch size size channels"]:
    """Raw pixels at another size and channel count, a batch at a time; the same rules as `decode`."""
    if pixels.shape[3] == 4:
        alpha = pixels[..., 3:].astype(np.uint16)
        pixels = ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    if pixels.shape[3] == 3 and channels == 1:  # ITU-R 601 luma in 16 bits of fraction, as Pillow computes it
        red, green, blue = (pixels[..., i].astype(np.uint32) for i in range(3))
        pixels = ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)[..., None]
    height, width = pixels.shape[1:3]
    if (height, width) != (size, size):
        new_width, new_height = _resized(width, height, size)
        left, top = _margin(new_width, size), _margin(new_height, size)
        planes = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
        planes = interpolate(planes, (new_height, new_width), mode="bilinear", antialias=True)
        pixels = planes[:, :, top : top + size, left : left + size].permute(0, 2, 3, 1).contiguous().numpy()
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


def processors() -> int:
    """How many this process may use, a thread to decode for each: a cluster's job often gets some of a machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def conversions(shape: tuple[int, int, int], size: int, channels: int) -> dict[str, str]:
    """What happens to an image of `shape` on its way to [size, size, channels]: kind of conversion -> a sentence."""
    height, width, stored = shape
    found = {}
    if (height, width) != (size, size):
        crop = "" if height == width else ", the center is kept"
        found["size"] = f"{width}x{height} images are resized to {size}x{size} (antialiased bilinear{crop})"
    if stored == 4:
        found["alpha"] = "transparent pixels are laid over white"
    if stored == 1 and channels == 3:
        found["channels"] = "gray is repeated over 3 channels"
    if stored != 1 and channels == 1:
        found["channels"] = "color is converted to gray (ITU-R 601 luma)"
    return found


def _load(item: object, size: int, bits: int | None) -> tuple["Image", tuple[int, int, int], int | None]:
    """The image in mode L or RGB (or one that converts to them), upright, without alpha; the shape it had, and of

    16 bits the largest value.
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
        image.draft(None, (2 * size, 2 * size))  # JPEG alone: decodes at 1/2, 1/4 or 1/8, never below twice the size
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
        raise Unreadable("is no PNG, JPEG, WebP, BMP, GIF, TIFF or PPM image") from None
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


def _resized(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height once the shorter side is `size`; the longer is rounded down, as by torchvision's Resize."""
    short = min(width, height)
    return size * width // short, size * height // short


def _margin(length: int, size: int) -> int:
    """Pixels before a centered crop, rounded as by torchvision's CenterCrop."""
    return round((length - size) / 2)
