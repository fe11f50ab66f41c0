"""One image of a file's bytes, or a PIL image -> upright pixels without alpha, of 8 bits, in gray or color."""

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
"""Pillow knows many more by their content; of these one starts another program (EPS), and all are more to attack."""
_ORIENTATION = 0x0112
_ASIDE = ("TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
_TURNS = dict(enumerate(("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", *_ASIDE), start=2))
"""What turns an image upright, by its orientation; those from 5 on exchange width and height."""
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
Needed = Callable[[int, int], tuple[int, int]]
"""From an upright image's width and height to the least of both to which a JPEG file is decoded."""


@dataclass(frozen=True)
class Loaded:
    """An image before it is resized, and the height, width and channels (4: with alpha) that it had.

    It is a PIL image in mode L or RGB, or one that converts to them; of most JPEG files the pixels.
    `largest` is the largest value of an image that has 16 bits and does not say its range.
    """

    image: "Image | UInt8[np.ndarray, 'height width channels']"
    shape: tuple[int, int, int]
    largest: int | None = None

    def picture(self) -> "Image":
        """As a PIL image."""
        from PIL import Image

        if isinstance(self.image, Image.Image):
            return self.image
        return Image.fromarray(self.image[..., 0] if self.image.shape[2] == 1 else self.image)

    def picture_of(self, channels: int) -> "Image":
        """As a PIL image of 1 or 3 channels."""
        image, wanted = self.picture(), "L" if channels == 1 else "RGB"
        return image if image.mode == wanted else image.convert(wanted)

    def pixels(self, channels: int) -> UInt8[np.ndarray, "height width {channels}"]:
        """As an array of 1 or 3 channels."""
        if isinstance(self.image, np.ndarray) and self.image.shape[2] == channels:
            return self.image
        image = self.picture_of(channels)
        return np.array(image).reshape(*image.size[::-1], channels)


def load(item: object, needed: Needed, bits: int | None, arrays: bool = True) -> Loaded:
    """Read a file's bytes, or take a PIL image. Of 16-bit gray the upper 8 of `bits` are taken.

    JPEG files are decoded at 1/2, 1/4 or 1/8, as far as they are no smaller than `needed`. Without `arrays` all are PIL
    images, with what stands beside the pixels in their files.
    Raises: Unreadable for anything that Pillow cannot read to its end, for more pixels than its bomb limit, and for
    16-bit color with `bits`.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(item, Unreadable):
        raise item
    if not isinstance(item, bytes | Image.Image):
        raise Unreadable(f"is a {type(item).__name__}, not an image")
    most = Image.MAX_IMAGE_PIXELS or math.inf
    try:
        plain = plain_jpeg(item) if arrays and isinstance(item, bytes) else None
        if plain and plain.width * plain.height <= most and (found := _of_jpeg(item, plain, needed)):
            return found
        image = _opened(item) if isinstance(item, bytes) else item
        width, height = image.size
        if width * height > most:
            raise Unreadable(f"{width}x{height} pixels: above the limit against decompression bombs")
        if image.format in ("JPEG", "MPO"):
            return _load_jpeg(item if arrays else image, image, needed)
        return _load_other(image, bits)
    except Unreadable:
        raise
    except UnidentifiedImageError:  # its own text holds a memory address
        raise Unreadable("is not a PNG, JPEG, WebP, BMP, GIF, TIFF or PPM image") from None
    except Exception as error:  # broken files make Pillow raise nearly anything
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def _load_jpeg(item: "bytes | Image", image: "Image", needed: Needed) -> Loaded:
    orientation, (width, height) = _orientation(image), image.size
    whole = orientation == 1  # turning an array takes the time that simplejpeg gains
    if whole and (found := _of_jpeg(item, Plain(width, height, image.mode), needed)):
        return found
    if orientation > 4:
        width, height = height, width
    least = needed(width, height)
    image.draft(None, least[::-1] if orientation > 4 else least)
    return Loaded(*_flat(_upright(image), (height, width), 8))


def _of_jpeg(item: object, image: Plain, needed: Needed) -> Loaded | None:
    """None where Pillow is to decode it."""
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


def _orientation(image: "Image") -> int:
    """How an image is turned, from 1 to 8, as its EXIF block says; 1, upright, where nobody can read that."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            said = image.getexif().get(_ORIENTATION, 1)
        return int(said) if said in _TURNS else 1
    except Exception:  # Pillow raises nearly anything for a broken block; the pixels are whole
        return 1


def _upright(image: "Image") -> "Image":
    from PIL import Image

    image.load()
    orientation = _orientation(image)  # of some formats it stands behind the pixels
    return image if orientation == 1 else image.transpose(Image.Transpose[_TURNS[orientation]])


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
