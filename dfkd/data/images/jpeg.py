"""JPEG files as arrays, by simplejpeg: the bytes that Pillow gives, in two thirds of its time.

Both are libjpeg-turbo. Pillow holds four bytes a pixel, which become an array by a copy; simplejpeg writes the array.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

_KINDS = {"RGB": "RGB", "L": "GRAY"}
"""Pillow's modes of JPEG files, and what simplejpeg calls them. CMYK is left to Pillow."""
_SCALES = (8, 4, 2)
_TELLING = 8
"""Pixels of the longer side from which on the fractions that simplejpeg knows, eighths, give different sizes."""
_BEGIN = b"\xff\xd8"
_SCAN = 0xDA
_FRAMES = (0xC0, 0xC1, 0xC2)
"""Markers with the size: baseline, extended and progressive."""
_SAY_NOTHING = (0xC4, 0xDB, 0xDD, 0xE0, 0xEE, 0xFE)
"""Markers that neither turn an image nor say that there are others behind it: tables, JFIF, Adobe, a comment."""
_PROFILE = 0xE2, b"ICC_PROFILE\0"
_MODES = {1: "L", 3: "RGB"}


class Plain(NamedTuple):
    """A JPEG file that is upright and 8 bits deep, in Pillow's words."""

    width: int
    height: int
    mode: str


@cache
def simplejpeg() -> Any:
    """The library, or None where it is not installed: it is made for some systems and versions of Python."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def decoders() -> tuple[str, ...]:
    """The distributions that decode image files here."""
    return ("pillow", "simplejpeg") if simplejpeg() is not None else ("pillow",)


def plain_jpeg(data: bytes) -> Plain | None:
    """What a JPEG file is, by its markers alone; None where they hold anything that Pillow is to read.

    Pillow takes 0.1 to 0.2 ms to open a file, a tenth of what it takes to decode a small one.
    """
    if not data.startswith(_BEGIN):
        return None
    at, found = len(_BEGIN), None
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, content = data[at + 1], at + 4
        at += 2 + (data[at + 2] << 8) + data[at + 3]
        if marker == _SCAN:
            return found
        if marker in _FRAMES and found is None and at >= content + 6:
            depth, mode = data[content], _MODES.get(data[content + 5])
            height, width = (int.from_bytes(data[i : i + 2], "big") for i in (content + 1, content + 3))
            if depth != 8 or mode is None or not width * height:
                return None
            found = Plain(width, height, mode)
        elif marker == _PROFILE[0]:
            if not data.startswith(_PROFILE[1], content):
                return None
        elif marker not in _SAY_NOTHING:
            return None
    return None


def jpeg_pixels(data: bytes, image: Plain, least: tuple[int, int]) -> UInt8[np.ndarray, "height width channels"] | None:
    """The pixels of a JPEG file as it is stored; None where Pillow is to decode it.

    The file is decoded at 1/2, 1/4 or 1/8 where that leaves the `least` width and height, as by Pillow's draft mode.
    Pillow also gets all that is damaged: what it makes of it, or says of it, does not depend on simplejpeg.
    """
    library, kind = simplejpeg(), _KINDS.get(image.mode)
    if library is None or kind is None or max(image.width, image.height) < _TELLING:
        return None
    scale = next((s for s in _SCALES if min(image.width // least[0], image.height // least[1]) >= s), 1)
    scaled = {} if scale == 1 else {"min_height": -(-image.height // scale), "min_width": -(-image.width // scale)}
    try:
        return library.decode_jpeg(data, kind, **scaled)
    except ValueError:
        return None
