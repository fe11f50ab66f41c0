"""Reader of `torchvision:NAME[:SPLIT]`: a data set of torchvision, or a user's class with the same interface."""

import hashlib
import inspect
import os
from collections.abc import Callable, Mapping
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from dfkd.data.readers.reader import Reader, Unreadable, as_labels, as_nhwc
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.system.files import cache_folder
from dfkd.system.names import find
from dfkd.system.spacing import evenly_spaced

COMPARED = 5
"""Items that must equal the attribute `data`, which is then read in their place."""

NO_LABEL = -1
"""Label of an image that has none."""


class VisionReader(Reader):
    """Reader of a map-style data set of (image, label).

    Pixels are those of the data set's attribute `data` if it matches the items, else those of PIL images.
    """

    def __init__(self, name: str, dataset: Any) -> None:
        self._name, self._dataset = name, dataset
        if not len(dataset):
            raise RequestError(f"{name!r} holds no images")
        self._pixels = _raw(dataset)
        self.identity = {"format": "torchvision", "name": name, "images": len(dataset)}
        if self._pixels is not None:
            height, width, channels = as_nhwc(self._pixels[:1]).shape[1:]
            self.shape = (height, width, channels)
            self.identity["pixels"] = hashlib.sha256(np.ascontiguousarray(self._pixels).data).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, indices: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w c"] | list[object]:
        """Return pixels, or PIL images."""
        if self._pixels is not None:
            return as_nhwc(self._pixels[indices])
        return [self._image(i) for i in indices.tolist()]

    def labels(self) -> Int64[np.ndarray, " images"]:
        """Return the data set's attribute `targets` or `labels` if items have these labels, else those of all items.

        Raises: RequestError if the labels are not integers.
        """
        values = self._kept_labels()
        if values is None:
            values = [label_in(self._dataset[i]) for i in range(len(self))]
        try:
            return as_labels(values, len(self), "its target")
        except ValueError as error:
            raise RequestError(f"labels of {self._name!r}: {error}") from error

    def _kept_labels(self) -> Any:
        """Return the attribute that has the labels of the items, or None. One item of each class is compared."""
        for values in (getattr(self._dataset, attribute, None) for attribute in ("targets", "labels")):
            if values is not None and len(values) == len(self):
                rows = _one_of_each(values)
                if all(_has_label(self._dataset, row, values[row]) for row in rows):
                    return values
        return None

    def _image(self, index: int) -> object:
        try:
            return image_in(self._dataset[index])
        except Exception as error:  # the data set's own decoding can raise any exception
            why = (isinstance(error, OSError) and error.strerror) or error  # without the file's path
            return Unreadable(f"{type(error).__name__}: {why}")


def _has_label(dataset: Any, row: int, label: Any) -> bool:
    """Return whether an item has a label, as far as this can be known: some data sets give none, or fail for an item.

    `targets` do not know a `target_transform`.
    """
    try:
        own = label_in(dataset[row])
    except Exception:  # foreign code; the error is reported when the image is read
        return True
    return is_unlabeled(own) or np.array_equal(np.asarray(own), np.asarray(label))


def _one_of_each(values: Any) -> list[int]:
    """Return the first row of each label, or only the first row of values that are no labels."""
    try:
        labels = np.asarray(values)
        return [0] if labels.dtype == object else np.unique(labels, return_index=True, axis=0)[1].tolist()
    except ValueError:  # lists of several lengths
        return [0]


def is_unlabeled(label: object) -> bool:
    """Return whether `label_in` has found no label."""
    return isinstance(label, int) and label == NO_LABEL


def image_in(item: Any) -> Any:
    """Return the image of a data set's item: the item itself, the first of (image, label), or the image of a table."""
    if isinstance(item, Mapping):
        return next((item[key] for key in ("image", "img") if key in item), item)
    return item[0] if isinstance(item, (tuple, list)) and item else item


def label_in(item: Any) -> Any:
    """Return the label of a data set's item, or NO_LABEL."""
    if isinstance(item, Mapping):
        return next((item[key] for key in ("label", "labels") if key in item), NO_LABEL)
    return item[1] if isinstance(item, (tuple, list)) and len(item) > 1 else NO_LABEL


def open_vision(text: str) -> tuple[str, VisionReader]:
    """Return the name for origins, and a reader. Files are in `DFKD_DATA`, by default in the user's cache folder.

    Raises: RequestError for an unknown name or split, or if the data set is not available.
    """
    name, *words = text.removeprefix("torchvision:").split(":")
    target = find(name if "." in name else name.lower(), ["torchvision.datasets"], "torchvision data set")
    parameters = inspect.signature(target).parameters
    given = _split(target, words, text)
    if "root" in parameters:
        given["root"] = str(data_folder())
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    missing = [p for p in missing if p not in given]
    if missing:
        raise RequestError(f"{text!r}: {name} is not a data set of images alone (it needs {', '.join(missing)})")
    try:
        return text, VisionReader(text, _build(target, given, "download" in parameters, text))
    except RequestError:
        raise
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise RequestError(f"{text!r} is not available: {error}") from error


def data_folder() -> Path:
    """Return the folder of torchvision's files: `DFKD_DATA`, or `data` in the cache folder."""
    return Path(os.environ.get("DFKD_DATA") or cache_folder() / "data")


def _build(target: Callable[..., Any], given: dict[str, Any], can_download: bool, text: str) -> Any:
    """Return the data set, from existing files or else after a download."""
    try:
        return target(**given)
    except (RuntimeError, FileNotFoundError):
        if not can_download:
            raise
    say(f"{text}: downloading to {given['root']}")
    return target(**given, download=True)


def _split(target: Callable[..., Any], words: list[str], text: str) -> dict[str, Any]:
    """Return the arguments for SPLIT: some data sets take `train=bool`, some `split=str`, and EMNIST takes both."""
    parameters = inspect.signature(target).parameters
    given: dict[str, Any] = {}
    for word in words:
        if "train" in parameters and word in ("train", "test") and "train" not in given:
            given["train"] = word == "train"
        elif "split" in parameters and word and "split" not in given:
            given["split"] = word
        else:
            allowed = "train or test" if "train" in parameters else "none: this data set has no splits"
            raise RequestError(f"{text!r}: split {word!r} is not {allowed} (torchvision:NAME[:SPLIT])")
    return given


def _raw(dataset: Any) -> UInt8[np.ndarray, "n *stored"] | None:
    """Return the data set's attribute `data` if it holds one uint8 image per item and equals a few items, else None."""
    import torch

    data = getattr(dataset, "data", None)
    pixels = np.asarray(data) if isinstance(data, np.ndarray | torch.Tensor) else None
    if pixels is None or pixels.dtype != np.uint8 or len(pixels) != len(dataset):
        return None
    rows = evenly_spaced(len(pixels), COMPARED)
    try:
        images = as_nhwc(pixels[rows])
    except ValueError:
        return None
    return pixels if all(map(_is_item, repeat(dataset), rows.tolist(), images)) else None


def _is_item(dataset: Any, row: int, image: UInt8[np.ndarray, "height width channels"]) -> bool:
    try:
        item = np.asarray(image_in(dataset[row]))
    except Exception:  # foreign code; its images are then read one by one, and the error is that of one image
        return False
    return item.size == image.size and np.array_equal(item.reshape(image.shape), image)
