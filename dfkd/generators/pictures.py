"""Images of a trained method by number, with the teacher's scores: a pool that is not stored."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dfkd.data import Images
from dfkd.data.images.decode import encode_png
from dfkd.data.images.frame import ENCODED_ABOVE
from dfkd.generators.base import Method, drawn, quantize
from dfkd.models.classifier import Classifier
from dfkd.models.features.outputs import half
from dfkd.select.methods import ImageScores
from dfkd.select.score import score_logits

BLOCK = 256
"""Images that are made and scored at a time."""


class HeldScores:
    """The teacher's logits and scores of images, in memory."""

    def __init__(self) -> None:
        self.problems: dict[int, str] = {}
        self._blocks: list[tuple[np.ndarray, ...]] = []
        """Logits, confidence, entropy and prediction of each block."""

    def __len__(self) -> int:
        return sum(len(logits) for logits, *_ in self._blocks)

    def add(self, logits: Float[Tensor, "block classes"]) -> ImageScores:
        """Append the teacher's logits for the next images. Returns their scores."""
        scores = ImageScores(*(values.cpu().numpy() for values in score_logits(logits)))
        self._blocks.append((half(logits).cpu().numpy(), scores.confidence, scores.entropy, scores.prediction))
        return scores

    @property
    def images(self) -> ImageScores:
        """Scores of all images."""
        return ImageScores(*self._joined()[1:])

    def at(self, indices: Int[np.ndarray, " picked"]) -> ImageScores:
        """Return the scores of the images at `indices`."""
        return ImageScores(*(values[indices] for values in self._joined()[1:]))

    def logits(self, indices: Int[np.ndarray, " picked"]) -> Float[np.ndarray, "picked classes"]:
        """Return the float16 logits of the images at `indices`."""
        logits: np.ndarray = self._joined()[0]
        return logits[indices]

    def _joined(self) -> tuple[np.ndarray, ...]:
        if len(self._blocks) > 1:  # concatenate once, not for every shard
            self._blocks = [tuple(map(np.concatenate, zip(*self._blocks, strict=True)))]
        return self._blocks[0]


class GeneratedPictures:
    """Images of a trained method by number. Reading an image makes it again."""

    def __init__(self, method: Method, name: str) -> None:
        """Start without images. The origin of every image begins with the method's `name`."""
        self._method, self._name = method, name
        self.image_size = method.task.size
        self.encoded = self.image_size > ENCODED_ABOVE
        self.scores = HeldScores()

    def __len__(self) -> int:
        return len(self.scores)

    def score(self, teacher: Classifier, count: int) -> ImageScores:
        """Make the next `count` images and score them with the teacher. Returns their scores."""
        pixels = self._pixels(np.arange(len(self), len(self) + count))
        return self.scores.add(teacher(torch.from_numpy(pixels)).logits)

    def origins(self, indices: Int[np.ndarray, " batch"]) -> list[str]:
        """Return the origin of each image: the method's name and the image's number."""
        return [f"{self._name}/{index}" for index in indices]

    def images(self, indices: Int[np.ndarray, " batch"]) -> Images:
        """Return the pixels of the images with these sorted numbers."""
        return Images(self._pixels(indices), {})

    def files(self, indices: Int[np.ndarray, " batch"]) -> list[bytes]:
        """Return the images with these sorted numbers as PNG files."""
        return [encode_png(image) for image in self._pixels(indices)]

    def _pixels(self, indices: Int[np.ndarray, " batch"]) -> UInt8[np.ndarray, "batch size size channels"]:
        return np.concatenate([*self._parts(indices)])

    def _parts(self, indices: Int[np.ndarray, " batch"]) -> Iterator[np.ndarray]:
        """Yield the images of each block, made by one call of the method."""
        for block in np.unique(indices // BLOCK):
            rows = indices[indices // BLOCK == block]
            first, count = int(rows[0]), int(rows[-1] - rows[0]) + 1
            images = drawn(self._method, count, partial(self._method.images, first, count))
            yield quantize(images).cpu().numpy()[rows - first]
