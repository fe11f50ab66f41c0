"""Loading of a file's bytes, or of a PIL image, as an upright 8-bit image without alpha, in gray or color."""

import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from dfkd.data.images.jpeg import Plain, jpeg_pixels, plain_jpeg
from dfkd.data.readers.reader import Unreadable

if TYPE_CHECKING:
    from PIL.Image import Image

_GRAY = ("1", "L")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM")
"""Formats that Pillow may decode, recognized by content.

Pillow knows many more. One of them (EPS) starts another program, and every decoder adds to what can be attacked.
"""
_ORIENTATION = 0x0112
_ASIDE = ("TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
_TURNS = dict(enumerate(("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", *_ASIDE), start=2))
"""Operation that turns an image upright, by its EXIF orientation. Orientations from 5 on exchange width and height."""
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
Needed = Callable[[int, int], tuple[int, int]]
"""Function from an upright image's width and height to the least width and height to which a JPEG file is decoded."""


@dataclass(frozen=True)
class Loaded:
    """Image before it is resized, with its original height, width and channels (4: with alpha).

    The image is a PIL image in mode L or RGB, or in a mode that converts to these. Most JPEG files are pixel arrays.
    `largest` is the largest value of a 16-bit image whose file does not state the range.
    """

    image: "Image | UInt8[np.ndarray, 'height width channels']"
    shape: tuple[int, int, int]
    largest: int | None = None

    def picture(self) -> "Image":
        """Return the image as a PIL image."""
        return picture_of(self.image) if isinstance(self.image, np.ndarray) else self.image

    def picture_of(self, channels: int) -> "Image":
        """Return the image as a PIL image of 1 or 3 channels."""
        image, wanted = self.picture(), "L" if channels == 1 else "RGB"
        return image if image.mode == wanted else image.convert(wanted)

    def pixels(self, channels: int) -> UInt8[np.ndarray, "height width {channels}"]:
        """Return the image as an array of 1 or 3 channels."""
        if isinstance(self.image, np.ndarray) and self.image.shape[2] == channels:
            return self.image
        image = self.picture_of(channels)
        return np.array(image).reshape(*image.size[::-1], channels)


def picture_of(pixels: UInt8[np.ndarray, "height width channels"]) -> "Image":
    """Return pixels as a PIL image, which has no axis for the one channel of gray pixels."""
    from PIL import Image

    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def load(item: object, needed: Needed, bits: int | None, arrays: bool = True) -> Loaded:
    """Return the image of a file's bytes, or of a PIL image. Of 16-bit gray, the upper 8 of `bits` are taken.

    JPEG files are decoded at 1/2, 1/4 or 1/8 of their size, if the result is not smaller than `needed`. Without
    `arrays`, the result is always a PIL image, with the metadata of its file.
    Raises: Unreadable for images that Pillow cannot read to their end, 16-bit color with `bits`, and images above
    Pillow's limit against decompression bombs.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(item, Unreadable):
        raise item
    if not isinstance(item, bytes | Image.Image):
        raise Unreadable(f"is a {type(item).__name__}, not an image")
    if item == b"":
        raise Unreadable("is an empty file")
    most = Image.MAX_IMAGE_PIXELS or math.inf
    try:
        plain = plain_jpeg(item) if arrays and isinstance(item, bytes) else None
        if plain and plain.width * plain.height <= most and (found := _of_jpeg(item, plain, needed)):
            return found
        image = _opened(item) if isinstance(item, bytes) else item
        width, height = image.size
        if width * height > most:
            limit = f"above the limit of {most / 1e6:.0f} megapixels, against decompression bombs"
            raise Unreadable(f"{width}x{height} pixels: {limit}; reduce it")
        if image.format in ("JPEG", "MPO"):
            return _load_jpeg(item if arrays else image, image, needed)
        return _load_other(image, bits)
    except Unreadable:
        raise
    except UnidentifiedImageError:  # its own message contains a memory address
        raise Unreadable("is not a PNG, JPEG, WebP, BMP, GIF, TIFF or PPM image") from None
    except Exception as error:  # Pillow raises nearly any exception for damaged files
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def _load_jpeg(item: "bytes | Image", image: "Image", needed: Needed) -> Loaded:
    orientation, (width, height) = _orientation(image), image.size
    whole = orientation == 1  # turning an array would take the time that simplejpeg saves
    if whole and (found := _of_jpeg(item, Plain(width, height, image.mode), needed)):
        return found
    if orientation > 4:
        width, height = height, width
    least = needed(width, height)
    image.draft(None, least[::-1] if orientation > 4 else least)
    return Loaded(*_flat(_upright(image), (height, width), 8))


def jpeg_header(data: bytes) -> tuple[Plain, int] | None:
    """Return a JPEG file's size and mode as stored, and its EXIF orientation.

    The result is None for other formats and colors, damaged headers and images above Pillow's limit, as `load` has
    rules or a message for these.
    """
    from PIL import Image

    plain, orientation = plain_jpeg(data), 1
    if plain is None:
        try:
            image = _opened(data)
        except Exception:  # Pillow raises nearly any exception for damaged files
            return None
        if image.format not in ("JPEG", "MPO") or image.mode not in ("L", "RGB"):
            return None
        plain, orientation = Plain(*image.size, image.mode), _orientation(image)
    return (plain, orientation) if plain.width * plain.height <= (Image.MAX_IMAGE_PIXELS or math.inf) else None


def _of_jpeg(item: object, image: Plain, needed: Needed) -> Loaded | None:
    """Return a JPEG file decoded by simplejpeg, or None if Pillow is to decode the file."""
    pixels = jpeg_pixels(item, image, needed(image.width, image.height)) if isinstance(item, bytes) else None
    return None if pixels is None else Loaded(pixels, (image.height, image.width, pixels.shape[2]))


def _load_other(image: "Image", bits: int | None) -> Loaded:
    deep = image.mode in ("RGB", "RGBA") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    if deep and bits is not None:
        raise Unreadable("is color of 16 bits, of which only the upper 8 are read: write it with 8 bits")
    own, (width, height) = _own_bits(image), image.size
    upright = _upright(image)
    if upright.size != image.size:
        width, height = height, width
    unsaid = deep or (own is None and upright.mode.startswith("I"))
    largest = int(np.asarray(upright).max()) if unsaid else None
    flat, shape = _flat(upright, (height, width), own or bits or 16)
    return Loaded(flat, shape, 256 * largest + 255 if largest and deep else largest)


def _opened(data: bytes) -> "Image":
    """Return the image of a file's bytes, with its pixels not yet read.

    Pillow refuses a PNG file for damaged metadata, such as a wrong checksum or more than a megabyte of text or color
    profile. The image is then opened without its metadata.
    """
    from PIL import Image, UnidentifiedImageError

    with warnings.catch_warnings():  # the caller refuses decompression bombs
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)  # _orientation ignores a damaged EXIF block
        try:
            return Image.open(io.BytesIO(data), formats=_FORMATS)
        except (UnidentifiedImageError, ValueError, SyntaxError):
            if not data.startswith(_PNG):
                raise
        return Image.open(io.BytesIO(_pixels_of_png(data)), formats=_FORMATS)


def _pixels_of_png(data: bytes) -> bytes:
    """Return a PNG file without metadata. The chunks that decide its pixels and orientation stay unchanged."""
    kept, at = [_PNG], len(_PNG)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] in _PNG_CHUNKS:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _orientation(image: "Image") -> int:
    """Return an image's EXIF orientation from 1 to 8, or 1 (upright) if the EXIF block cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            said = image.getexif().get(_ORIENTATION, 1)
        return int(said) if said in _TURNS else 1
    except Exception:  # Pillow raises nearly any exception for a damaged block; the pixels are intact
        return 1


def beside_pixels(image: "Image") -> bytes:
    """Return what decides a PIL image's colors beside its pixels, as bytes: orientation, palette and transparency.

    The result is empty for an upright image that has neither of the others.
    """
    orientation, palette, transparency = _orientation(image), image.getpalette(None), image.info.get("transparency")
    if orientation == 1 and palette is None and transparency is None:
        return b""
    return repr((orientation, palette, transparency)).encode()


def _upright(image: "Image") -> "Image":
    from PIL import Image

    image.load()
    orientation = _orientation(image)  # some formats store the orientation after the pixels
    return image if orientation == 1 else image.transpose(Image.Transpose[_TURNS[orientation]])


def _own_bits(image: "Image") -> int | None:
    """Return the number of bits in use of 16 if the file's format states it, else None."""
    if image.format == "PPM":  # Pillow scales the values to 16 bits
        return 16
    own = image.tag_v2.get(258) if image.format == "TIFF" and hasattr(image, "tag_v2") else None  # BitsPerSample
    return 12 if own == (12,) else None


def _flat(image: "Image", extent: tuple[int, int], bits: int) -> tuple["Image", tuple[int, int, int]]:
    """Return an image without alpha and 16-bit pixels, and its original shape."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit gray: mode I;16 for PNG and TIFF, mode I for PGM
        values = np.asarray(image).clip(0, 2**bits - 1).astype(np.uint16)
        image = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    if image.mode == "F":
        raise Unreadable("has floating-point pixels, whose range nobody knows")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB"), (*extent, 4)
    return image, (*extent, 1 if image.mode in _GRAY else 3)
