"""Decoding of JPEG files to arrays by simplejpeg, with the same bytes as by Pillow in two thirds of the time.

Both libraries use libjpeg-turbo. Pillow stores four bytes per pixel, and copies them to an array. simplejpeg writes the
array directly.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

_KINDS = {"RGB": "RGB", "L": "GRAY"}
"""simplejpeg's color spaces by Pillow's modes of JPEG files. Pillow decodes CMYK files."""
_SCALES = (8, 4, 2)
_TELLING = 8
"""Least longer side in pixels of a file for simplejpeg.

simplejpeg takes a scale as a least size. In smaller files, several of its scales (multiples of 1/8) have the same size.
"""
_BEGIN = b"\xff\xd8"
_SCAN = 0xDA
_FRAMES = (0xC0, 0xC1, 0xC2)
"""Markers that contain the image's size: baseline, extended and progressive."""
_SAY_NOTHING = (0xC4, 0xDB, 0xDD, 0xE0, 0xEE, 0xFE)
"""Markers that neither turn an image nor announce further images: tables, JFIF, Adobe, comments."""
_PROFILE = 0xE2, b"ICC_PROFILE\0"
_MODES = {1: "L", 3: "RGB"}


class Plain(NamedTuple):
    """Size and Pillow's mode of a JPEG file that is upright and has 8 bits per value."""

    width: int
    height: int
    mode: str


@cache
def simplejpeg() -> Any:
    """Return the library simplejpeg, or None if the library is not installed. Some systems have no package of it."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def decoders() -> tuple[str, ...]:
    """Return the names of the distributions that decode image files here."""
    return ("pillow", "simplejpeg") if simplejpeg() is not None else ("pillow",)


def plain_jpeg(data: bytes) -> Plain | None:
    """Return the size and mode of a JPEG file from its markers, or None if the file needs Pillow.

    Pillow takes 0.1 to 0.2 ms to open a file, a tenth of the time in which it decodes a small one.
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
    """Return the pixels of a JPEG file as stored, without turning, or None if Pillow is to decode the file.

    The file is decoded at 1/2, 1/4 or 1/8 of its size, as by Pillow's draft mode. A reduced image still has the width
    and height in `least`. Pillow decodes all damaged files, so that pixels and messages do not depend on simplejpeg.
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
