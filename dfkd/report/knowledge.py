"""Quantified knowledge (arXiv 2003.03622): what networks use of images, and how this changed during training.

Cheng et al., Explaining knowledge distillation by quantifying the knowledge, 2020.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from dfkd.formats.kept_weights import checked_files
from dfkd.models.classifier import Classifier
from dfkd.models.features.grad_cam import deepest_map
from dfkd.models.features.pixel_entropy import concept_parts, pixel_entropy, side_of
from dfkd.models.features.taps import Tap
from dfkd.models.load import Model
from dfkd.models.load_weights import load_weights
from dfkd.system.console import say
from dfkd.system.errors import RequestError

GRID = 16
"""Parts along the longer side of an image."""


@dataclass(frozen=True)
class Learning:
    """A network's concepts on the foreground at several moments of its training, the first weights left out."""

    steps: tuple[int, ...]
    distance: Float[np.ndarray, " moments"]
    """Sum over the moments so far of |w_k - w_(k-1)|, divided by |w_0|."""
    concepts: Bool[np.ndarray, "moments images rows columns"]

    @property
    def counts(self) -> Float[np.ndarray, " moments"]:
        """Number of concepts of an image at each moment, averaged over images."""
        means: np.ndarray = self.concepts.sum(axis=(2, 3)).mean(axis=1)
        return means

    def distances(self) -> Float[np.ndarray, " some"]:
        """Return the weight distance at which each image has the most concepts.

        Images without concepts are left out.
        """
        numbers = self.concepts.sum(axis=(2, 3))
        return self.distance[numbers.argmax(axis=0)[numbers.any(axis=0)]]

    def measures(self) -> dict[str, float]:
        """Return D mean and D std of `distances`, and rho: the share of all concepts ever found that remains.

        rho is the mean over the images that have a concept at some moment. A measure is NaN if there are no such
        images.
        """
        found = self.distances()
        ever = self.concepts.any(axis=0).sum(axis=(1, 2))
        left = self.concepts[-1].sum(axis=(1, 2))
        shares = left[ever > 0] / ever[ever > 0]
        nothing = float("nan")
        return {
            "D mean": float(found.mean()) if len(found) else nothing,
            "D std": float(found.std()) if len(found) else nothing,
            "rho": float(shares.mean()) if len(shares) else nothing,
        }


@dataclass(frozen=True)
class Knowledge:
    """Pixel-wise entropies of networks on some images, in nats, and the foreground masks if they are known."""

    pixels: UInt8[np.ndarray, "images height width channels"]
    entropies: Mapping[str, Float[np.ndarray, "images rows columns"]]
    masks: Bool[np.ndarray, "images h w"] | None
    learning: Mapping[str, Learning] = field(default_factory=dict)
    """Concepts during training, for the networks whose runs kept weights."""

    def counts(self) -> dict[str, tuple[float, float, float]] | None:
        """Return mean numbers of concepts on foreground and background, and the foreground's mean share, by network.

        None without masks. Images without a background part are left out. Images without a concept have no share.
        """
        if self.masks is None:
            return None
        found = {}
        for name, entropies in self.entropies.items():
            parts = concepts_of(entropies, self.masks, self.pixels.shape[1:3])
            pairs = [(int(on.sum()), int(off.sum())) for on, off in parts]
            shares = [on / (on + off) for on, off in pairs if on + off]
            on, off = np.mean(pairs, axis=0) if pairs else (np.nan, np.nan)
            found[name] = (float(on), float(off), float(np.mean(shares)) if shares else float("nan"))
        return found


Parts = Bool[np.ndarray, "rows columns"]


def concepts_of(
    entropies: Float[np.ndarray, "images rows columns"], masks: Bool[np.ndarray, "images h w"], size: Sequence[int]
) -> list[tuple[Parts, Parts]]:
    """Return the concepts on the foreground and on the background of each image that has a background part.

    `size` is the height and width of the images.
    """
    parts = [(entropy, shrunk(mask, size)) for entropy, mask in zip(entropies, masks, strict=True)]
    return [concept_parts(entropy, part) for entropy, part in parts if not part.all()]


def shrunk(mask: Bool[np.ndarray, "height width"], size: Sequence[int]) -> Parts:
    """Reduce a mask to the parts of an image of a height and width, which may differ from the mask's.

    A part is true if at least half of its pixels are, and has at least one pixel of the mask. The last parts of an
    image may be cut off.
    """
    side = side_of(size, GRID)
    edges = [
        np.minimum(np.arange(0, pixels + side, side), pixels) * length / pixels
        for pixels, length in zip(size, mask.shape, strict=True)
    ]
    spans = [[(int(a), max(int(np.ceil(b)), int(a) + 1)) for a, b in pairwise(e)] for e in edges]
    return np.array([[mask[top:end, left:right].mean() >= 0.5 for left, right in spans[1]] for top, end in spans[0]])


def knowledge(
    classifiers: Mapping[str, Classifier],
    runs: Mapping[str, Path],
    pixels: UInt8[np.ndarray, "images height width channels"],
    masks: Bool[np.ndarray, "images h w"] | None,
) -> Knowledge | None:
    """Quantify what networks use of some images. `runs` are the folders that may have kept weights.

    None, with a note, if a network has no feature map. Masks that leave no image a background part are left out, too.
    """
    if masks is not None and all(shrunk(mask, pixels.shape[1:3]).all() for mask in masks):
        say("note: visual concepts are left out: the foreground covers every part of every image")
        masks = None
    taps: dict[str, Tap] = {}
    for name, classifier in classifiers.items():
        try:
            taps[name] = deepest_map(classifier)
        except RequestError as error:
            say(f"note: pixel-wise entropies are left out: {error}")
            return None
    say(f"learning pixel-wise entropies of {len(pixels):,} images")
    found = {name: entropies_of(bare, taps[name], pixels) for name, bare in classifiers.items()}
    if masks is None:
        return Knowledge(pixels, found, None)
    learnt = {name: learning_of(classifiers[name], taps[name], name, run, pixels, masks) for name, run in runs.items()}
    return Knowledge(pixels, found, masks, {name: one for name, one in learnt.items() if one is not None})


def entropies_of(
    bare: Classifier, tap: Tap, pixels: UInt8[np.ndarray, "images height width channels"]
) -> Float[np.ndarray, "images rows columns"]:
    """Return the pixel-wise entropies of a network, in nats."""
    classifier = Classifier(bare.model, bare.place, {"map": tap})
    views = classifier.preprocess(torch.from_numpy(pixels))
    return np.concatenate([pixel_entropy(classifier, view, GRID).cpu().numpy() for view in views.split(16)])


def learning_of(
    classifier: Classifier,
    tap: Tap,
    name: str,
    run: Path,
    pixels: UInt8[np.ndarray, "images height width channels"],
    masks: Bool[np.ndarray, "images h w"],
) -> Learning | None:
    """Return a network's concepts during training, from the weights that its run kept. None if the run kept too few.

    Raises: RequestError for kept weights that are damaged, or of another network.
    """
    files = checked_files(run)
    if len(files) < 3 or 0 not in files:
        return None
    say(f"learning pixel-wise entropies of the {name} at {len(files) - 1} moments")
    weights: Tensor | None = None
    distance: list[float] = []
    found: list[np.ndarray] = []
    travelled, length = 0.0, 1.0
    for file in files.values():
        model = _with_weights(classifier.model, file)
        before, weights = weights, _parameters(model)
        if before is None:
            length = float(weights.norm()) or 1.0
            continue
        travelled += float((weights - before).norm()) / length
        distance.append(travelled)
        entropies = entropies_of(Classifier(model, classifier.place), tap, pixels)
        found.append(np.stack([on for on, _ in concepts_of(entropies, masks, pixels.shape[1:3])]))
    return Learning(tuple(files)[1:], np.array(distance), np.stack(found))


def _with_weights(model: Model, file: Path) -> Model:
    module = copy.deepcopy(model.module).cpu()
    load_weights(module, file)
    return replace(model, module=module)


def _parameters(model: Model) -> Float[Tensor, " parameters"]:
    return torch.cat([parameter.detach().double().flatten() for parameter in model.module.parameters()])
