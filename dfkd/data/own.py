"""Pools from Python objects: arrays and data sets that a caller passes in place of a DATA text."""

import hashlib
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from torch import Tensor

from dfkd.data.images.load import beside_pixels, picture_of
from dfkd.data.locate import Data, GivenData
from dfkd.data.readers.reader import CHANNELS, Reader, Unreadable, as_labels, as_nhwc, image_shape
from dfkd.data.readers.vision import VisionReader, image_in, is_unlabeled, label_in
from dfkd.system.errors import RequestError, first_line

IDENTITY = "identity"
"""Attribute in which a data set may give a text that identifies its content.

Without the attribute, all images are hashed.
"""


def data_of(value: Any, option: str) -> GivenData:
    """Return a value as a DATA text or an opened DATA.

    Texts are returned unchanged, and paths as texts. An array, a pair (array, labels) or a map-style data set becomes
    opened DATA.
    Raises: RequestError, which names the option, for any other value.
    """
    if isinstance(value, (str, Data)):
        return value
    if isinstance(value, Path):
        return str(value)
    pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], (np.ndarray, Tensor))
    if pair or isinstance(value, (np.ndarray, Tensor)):
        images, labels = value if pair else (value, None)
        return Data("array", [("array", ArrayReader(images, labels, option))])
    if hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, (bytes, dict, list, type)):
        name = type(value).__name__
        try:
            len(value)
        except Exception as error:  # foreign code
            raise RequestError(
                f"--{option} is a {name} whose len() fails ({type(error).__name__}: {first_line(error)}); give a data "
                "set with len() and [index]"
            ) from error
        return Data(name, [(name, DatasetReader(name, value, option))])
    raise RequestError(
        f"--{option} is a {type(value).__name__}, not a DATA text, an array of uint8 images, a pair (array, labels) "
        "or a data set with len() and [index]"
    )


class ArrayReader(Reader):
    """Reader of an array or tensor of uint8 images, with optional labels."""

    def __init__(self, images: Any, labels: Any, option: str) -> None:
        pixels = _array(images, f"--{option}")
        if pixels.dtype != np.uint8:
            raise RequestError(f"--{option} is an array of {pixels.dtype}, not uint8; give pixels of 0 to 255 as uint8")
        try:
            self.shape = image_shape(pixels.shape[1:])
        except ValueError as error:
            raise RequestError(f"--{option}: {error}") from None
        if pixels.ndim == 3 and (pixels.shape[2] in CHANNELS or pixels.shape[0] in CHANNELS[1:]):
            raise RequestError(
                f"--{option} is an array of shape {list(pixels.shape)}, which may be one image; give [images, height, "
                "width, channels], with np.stack for a list of images"
            )
        if not len(pixels):
            raise RequestError(f"--{option} is an array without images; give one image or more")
        self._pixels, self._labels, self._option = pixels, labels, option
        self.identity = {
            "format": "array",
            "shape": list(pixels.shape),
            "pixels": _hash([np.ascontiguousarray(pixels).data]),
        }
        if labels is not None:
            self.identity["labels"] = _hash([self.labels().tobytes()])

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, indices: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w c"]:
        """Return a copy of the pixels."""
        return np.ascontiguousarray(as_nhwc(self._pixels[indices]))

    def labels(self) -> Int64[np.ndarray, " images"]:
        """Return the given labels. Raises: RequestError if there are none or they do not fit the images."""
        if self._labels is None:
            raise RequestError(f"--{self._option} is an array without labels; give a pair (images, labels)")
        labels = _array(self._labels, f"the second of the pair --{self._option}")
        try:
            return as_labels(labels, len(self), "the second of the pair")
        except ValueError as error:
            raise RequestError(f"labels of --{self._option}: {error}") from None


class DatasetReader(VisionReader):
    """Reader of a caller's map-style data set.

    Items are images, pairs (image, label), or tables with `image` and `label`. An image is a PIL image, an encoded
    file's bytes, or uint8 pixels as an array or tensor.
    """

    def __init__(self, name: str, dataset: Any, option: str) -> None:
        self._lock = threading.Lock()  # the data set may read from a single open file
        super().__init__(name, dataset)
        item = super()._image(0)
        first, again = _picture(item), self._image(0)
        if isinstance(first, Unreadable) and isinstance(item, (np.ndarray, Tensor)):
            raise RequestError(f"image 0 of --{option} {first}")
        if _content(first) != _content(again):
            raise RequestError(f"--{option}: {name} gives another image 0 each time; remove its random transforms")
        said = getattr(dataset, IDENTITY, None)
        content = {IDENTITY: said} if isinstance(said, str) else {"content": _hash(self._everything())}
        self.identity = {"format": "data set", **content}

    def _image(self, index: int) -> object:
        with self._lock:
            return _picture(super()._image(index))

    def _everything(self) -> Iterator[bytes]:
        """Yield all images and labels as bytes."""
        for values in (getattr(self._dataset, attribute, None) for attribute in ("targets", "labels")):
            yield str(None if values is None else np.asarray(values).tolist()).encode()
        if self._pixels is not None:
            yield np.ascontiguousarray(self._pixels).tobytes()
            if not is_unlabeled(label_in(self._dataset[0])) and self._kept_labels() is None:
                yield str([label_in(self._dataset[index]) for index in range(len(self))]).encode()
            return
        for index in range(len(self)):
            with self._lock:
                try:
                    item = self._dataset[index]
                except Exception as error:  # reported with its line when the image is read
                    item = Unreadable(type(error).__name__)
            yield _content(_picture(image_in(item)))
            yield str(label_in(item)).encode()


def _picture(item: object) -> object:
    """Return pixels as a PIL image, or as Unreadable if they are not an image. Return other images unchanged."""
    if not isinstance(item, (np.ndarray, Tensor)):
        return item
    try:
        pixels = _array(item, "")
    except RequestError as error:
        return Unreadable(str(error))
    if pixels.dtype != np.uint8:
        return Unreadable(f"is {pixels.dtype}, not uint8; leave out ToTensor and Normalize: give pixels of 0 to 255")
    try:
        return picture_of(as_nhwc(pixels[None])[0])
    except ValueError as error:
        return Unreadable(f"is not an image: {error}")


def _array(value: Any, what: str) -> Any:
    """Return a tensor as an array, and other values unchanged. Raises: RequestError for a tensor without numbers."""
    try:
        return value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    except (NotImplementedError, TypeError, RuntimeError) as error:  # on the device meta, or sparse
        raise RequestError(f"{what} is a tensor that cannot become an array ({first_line(error)})") from error


def _content(image: object) -> bytes:
    """Return an image's content as bytes, or the name of the error of a PIL image whose file is damaged."""
    from PIL import Image

    if isinstance(image, Image.Image):
        try:
            return f"{image.mode} {image.size} ".encode() + image.tobytes() + beside_pixels(image)
        except Exception as error:  # Pillow reads the pixels only now; reported when the image is read
            return type(error).__name__.encode()
    return image if isinstance(image, bytes) else str(image).encode()


def _hash(parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"%d " % memoryview(part).nbytes)
        digest.update(part)
    return digest.hexdigest()[:16]
