"""Images as elements of a page."""

import base64
import io

import numpy as np
from jaxtyping import Float, UInt8

from dfkd.data.images.load import picture_of
from dfkd.report.markup import Html, tag

_MORE, _LESS = np.array([29, 95, 168]), np.array([194, 65, 12])
THUMBNAIL = 96
"""Side of the thumbnail of a larger image, in pixels."""


def image_tag(
    pixels: UInt8[np.ndarray, "height width channels"],
    raw: bool,
    alt: str,
    title: str = "",
    place: int | None = None,
    side: int = THUMBNAIL,
) -> Html:
    """Return an image element, of at most `side` pixels unless the image is `raw`.

    `title` is the text that is shown on hover. `place` is the image's row in the pool, by which the script finds it.
    """
    return tag(
        "img",
        src=data_uri(pixels, raw, side),
        alt=alt,
        title=title or None,
        class_="pixelated" if raw else None,
        data_row=place,
        loading="lazy",
    )


def gallery_item(picture: Html, *caption: object) -> Html:
    """Return an item of a gallery: a picture above its caption."""
    return tag("li", tag("figure", picture, tag("figcaption", *caption)))


def data_uri(pixels: UInt8[np.ndarray, "height width channels"], raw: bool, side: int = THUMBNAIL) -> str:
    """Return an image as a data URI: raw images as PNG, encoded ones as JPEG of at most `side` pixels."""
    image, file = picture_of(pixels), io.BytesIO()
    if raw:
        image.save(file, "PNG")
    else:
        image.thumbnail((side, side))
        image.save(file, "JPEG", quality=85)
    return f"data:image/{'png' if raw else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"


def weight_colors(share: Float[np.ndarray, "*shape 1"]) -> UInt8[np.ndarray, "*shape 3"]:
    """Return the color of weights from -1 to 1: from orange over white to blue."""
    color = 255 + (np.where(share > 0, _MORE, _LESS) - 255) * np.abs(share)
    return color.round().astype(np.uint8)
