"""Pool of images: several DATA in sequence, as origins and uint8 images of one size, by index."""

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Int64, Integer, UInt8

from dfkd.data.conversion_notes import ConversionNotes
from dfkd.data.images.decode import BatchDecoder, Decoded, decode, encode_png, fit, processors
from dfkd.data.images.frame import ENCODED_ABOVE, WHOLE, Frame
from dfkd.data.images.intact import looks_intact
from dfkd.data.labels import ClassNames
from dfkd.data.locate import Data
from dfkd.data.pool_labels import PoolLabels
from dfkd.data.read_ahead import read_ahead
from dfkd.data.readers.reader import Reader, Unreadable
from dfkd.system.errors import RequestError
from dfkd.system.joined_rows import JoinedRows

NO_IMAGES = "without images"
_LOOKED_AT = 64
"""Files that a thread reads at once to look for damaged ones."""
_SMALL = 64 * 64
"""Largest number of pixels per image for which one thread decodes a batch.

At 32x32 pixels, two threads mostly wait for the interpreter's lock, and are slower than one.
"""

PixelFilter = Callable[[UInt8[np.ndarray, "batch size size channels"]], UInt8[np.ndarray, "batch size size channels"]]


@dataclass(frozen=True)
class Images:
    """Batch of images. `problems` has the reason for each unreadable image by position; its pixels are 0."""

    pixels: UInt8[np.ndarray, "batch size size channels"]
    problems: dict[int, str]

    @property
    def readable(self) -> UInt8[np.ndarray, "readable size size channels"]:
        """Pixels of the images that could be read."""
        return np.delete(self.pixels, list(self.problems), axis=0)


class Pool:
    """Images by index. Memory use does not grow with their number, except for the names of files in folders.

    `identity` has one JSON value per DATA, with everything that decides the content. `encoded` says that selections
    keep the encoded files. `left_out` counts files that are not images, by file or folder, and by suffix or another
    reason.
    """

    def __init__(
        self,
        data: Sequence[Data],
        image_size: int,
        channels: int,
        workers: int | None = None,
        empty: Sequence[str] = (),
        class_names: ClassNames | None = None,
        bits: int | None = None,
        frame: Frame = WHOLE,
        own_names: ClassNames | None = None,
    ) -> None:
        """Join opened DATA.

        `empty` names further DATA without images. `class_names` are given names of a model's classes, `own_names` those
        that the model has. `bits` is the number of bits in use of 16-bit images.
        """
        self.image_size, self.channels, self.bits, self.frame = image_size, channels, bits, frame
        self.left_out = {name: {NO_IMAGES: 1} for name in (*empty, *(name for one in data for name in one.empty))}
        self._parts: list[tuple[str, Reader, Data]] = []
        names: set[str] = set()
        for one in data:
            for name, reader in one.parts:
                unique = _unused(name, names)
                names.add(unique)
                self._parts.append((unique, reader, one))
                if reader.left_out:
                    self.left_out[unique] = dict(reader.left_out)
        self._labels = PoolLabels([(name, reader) for name, reader, _ in self._parts], class_names, own_names)
        given = {"classes": self._labels.identity, "bits": bits}
        given = {name: value for name, value in given.items() if value is not None}
        self.identity = [one.identity() | given for one in data]
        self.encoded = image_size > ENCODED_ABOVE
        self._rows = JoinedRows(len(reader) for _, reader, _ in self._parts)
        self._workers = workers or processors()
        self._threads = ThreadPoolExecutor(self._workers, "dfkd-decode")
        self._notes = ConversionNotes(image_size, channels, bits, frame)
        self._filter: PixelFilter | None = None
        self._decoder: BatchDecoder | None = None

    def filtered(self, by: PixelFilter) -> "Pool":
        """Return a copy of the pool whose images are filtered. Its encoded files stay unfiltered."""
        pool = copy.copy(self)
        pool._filter = by
        return pool

    def decoded_by(self, decoder: BatchDecoder) -> "Pool":
        """Return a copy of the pool whose JPEG files are decoded on a GPU."""
        pool = copy.copy(self)
        pool._decoder = decoder
        return pool

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def of_files(self) -> bool:
        """Whether some of its images are files of image formats."""
        return any(reader.shape is None for _, reader, _ in self._parts)

    def origins(self, indices: Integer[np.ndarray, " batch"]) -> list[str]:
        """Return the images' origins, stable, readable and unique in the pool: `pool.npz#17`, `folder/sub/a.png`."""
        found = [""] * len(indices)
        for name, reader, _, positions, local in self._split(indices):
            for position, member in zip(positions.tolist(), reader.members(local), strict=True):
                found[position] = name + member
        return found

    def images(self, indices: Integer[np.ndarray, " batch"]) -> Images:
        """Return images that are decoded, converted to `channels`, resized to `image_size` and filtered.

        The first conversion of each kind in a DATA is printed.
        """
        found = self._images(indices)
        if self._filter is None:
            return found
        pixels = self._filter(found.pixels)
        pixels[list(found.problems)] = 0
        return Images(pixels, found.problems)

    def _images(self, indices: Integer[np.ndarray, " batch"]) -> Images:
        pixels = np.zeros((len(indices), self.image_size, self.image_size, self.channels), np.uint8)
        problems: dict[int, str] = {}
        for _, reader, data, positions, local in self._split(indices):
            if reader.shape is None:
                shapes, largest = self._decode(reader, positions, local, pixels, problems)
                self._notes.on_shapes(data, shapes, encoded=True)
                self._notes.on_bits(data, largest)
                continue
            self._notes.on_shapes(data, {reader.shape}, encoded=False)
            raw = reader.read(local)
            assert isinstance(raw, np.ndarray)
            as_they_are = raw.shape[1:] == pixels.shape[1:] and self.frame == WHOLE
            fitted = raw if as_they_are else fit(raw, self.image_size, self.channels, self.frame)
            if len(fitted) == len(pixels):  # all images of the batch are from one reader
                return Images(fitted, problems)
            pixels[positions] = fitted
        return Images(pixels, dict(sorted(problems.items())))

    def files(self, indices: Integer[np.ndarray, " batch"]) -> list[bytes]:
        """Return encoded files unchanged, and raw pixels as PNG files. Raises: RequestError for a vanished file."""
        found = [b""] * len(indices)
        for name, reader, _, positions, local in self._split(indices):
            for position, index, item in zip(positions.tolist(), local, reader.read(local), strict=True):
                if isinstance(item, Unreadable):
                    member = reader.members(np.array([index]))[0]
                    raise RequestError(f"image {name + member!r} {item}; it was there when the pool was scored")
                found[position] = item if isinstance(item, bytes) else encode_png(item)
        return found

    def first_damaged(self) -> tuple[str, str] | None:
        """Return origin and reason of the first file that cannot be read, or None.

        Files that begin and end as their format does are taken as intact. All others are decoded.
        """

        def damaged(reader: Reader, start: int) -> tuple[int, str] | None:
            local = np.arange(start, min(start + _LOOKED_AT, len(reader)))
            for index, item in zip(local.tolist(), reader.read(local), strict=True):
                try:
                    if isinstance(item, Unreadable) or (isinstance(item, bytes) and not looks_intact(item)):
                        decode(item, self.image_size, self.channels, self.bits, self.frame)
                except Unreadable as problem:
                    return index, str(problem)
            return None

        for name, reader, _ in self._parts:
            if reader.shape is not None or not isinstance(reader.read(np.array([0]))[0], bytes | Unreadable):
                continue  # pixels, or images that foreign code decodes: no files to look at
            for found in self._threads.map(partial(damaged, reader), range(0, len(reader), _LOOKED_AT)):
                if found is not None:
                    return name + reader.members(np.array([found[0]]))[0], found[1]
        return None

    def labels(self, classes: int | None = None) -> Int64[np.ndarray, " images"]:
        """Return the class of every image, for a model of `classes` classes. Nothing else reads labels.

        Raises: RequestError if a DATA has no labels, or class names that cannot be assigned to the model's classes.
        """
        return self._labels.read(classes)

    def class_names(self, classes: int) -> tuple[str, ...]:
        """The names of a model's classes by `labels`: of `--classes`, or of the class folders; else none."""
        return self._labels.class_names(classes)

    def batches(
        self, size: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[Int64[np.ndarray, " batch"], Images]]:
        """Yield indices and images from `start` to `stop` in batches of `size`. A thread reads ahead.

        The thread ends with the iteration, even if the caller stops early. Exceptions of the thread are raised here.
        """
        stop = len(self) if stop is None else min(stop, len(self))
        starts = range(start, stop, size)
        indices = (np.arange(first, min(first + size, stop), dtype=np.int64) for first in starts)
        yield from read_ahead(indices, self.images)

    def _split(
        self, indices: Integer[np.ndarray, " batch"]
    ) -> Iterator[tuple[str, Reader, Data, Int64[np.ndarray, " some"], Int64[np.ndarray, " some"]]]:
        """Yield each part with some of the `indices`, their positions in the batch, and their indices in the part."""
        indices = indices.astype(np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"indices {indices.min()} to {indices.max()} of a pool of {len(self)}")
        for owner, positions, local in self._rows.split(indices):
            yield *self._parts[owner], positions, local

    def _decode(
        self,
        reader: Reader,
        positions: Int64[np.ndarray, " some"],
        local: Int64[np.ndarray, " some"],
        pixels: UInt8[np.ndarray, "batch size size channels"],
        problems: dict[int, str],
    ) -> tuple[set[tuple[int, int, int]], int | None]:
        """Read and decode images into `pixels`: on the GPU if there is a decoder, large ones else on all threads.

        Returns: the images' original shapes, and the largest value of 16-bit images.
        """
        shapes = set()
        largest: list[int] = []

        def keep(position: int, decoded: Decoded) -> None:
            pixels[position] = decoded.pixels
            shapes.add(decoded.shape)
            if decoded.largest is not None:
                largest.append(decoded.largest)

        def some(where: np.ndarray, which: np.ndarray) -> None:
            for position, item in zip(where.tolist(), reader.read(which), strict=True):
                try:
                    keep(position, decode(item, self.image_size, self.channels, self.bits, self.frame))
                except Unreadable as problem:
                    problems[position] = str(problem)

        if self._decoder is not None:
            found = self._decoder([*reader.read(local)], self.image_size, self.channels, self.frame)
            for position, decoded in zip(positions.tolist(), found, strict=True):
                if decoded is not None:
                    keep(position, decoded)
            left = [decoded is None for decoded in found]
            positions, local = positions[left], local[left]
        some(positions[:1], local[:1])
        positions, local = positions[1:], local[1:]
        if all(height * width <= _SMALL for height, width, _ in shapes) and shapes:
            some(positions, local)
            return shapes, max(largest, default=None)
        pieces = min(4 * self._workers, 1 + len(positions) // 8)  # several per thread, because images differ in cost
        work = zip(np.array_split(positions, pieces), np.array_split(local, pieces), strict=True)
        for done in [self._threads.submit(some, where, which) for where, which in work]:
            done.result()
        return shapes, max(largest, default=None)


def _unused(name: str, names: set[str]) -> str:
    """Return `name`, or the first unused of `name~2`, `name~3`, ..."""
    number, unique = 2, name
    while unique in names:
        unique, number = f"{name}~{number}", number + 1
    return unique
