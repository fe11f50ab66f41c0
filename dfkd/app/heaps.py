"""Heaps of photos and junk, as found images often are, with the kind of each image. For the demo and the benchmarks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from dfkd.app import junk
from dfkd.app.junk import Images, Photos

AT_ONCE = 1_000
"""Images of one kind that are made at a time, which limits the memory."""
COPIED: dict[str, Callable[[Images, np.random.Generator], Images]] = {
    "recompressed": junk.recompressed,
    "shifted": junk.shifted,
    "recolored": junk.recolored,
}
DRAWN = {"text": 15, "glyph": 10, "screen": 15, "gradient": 10, "noise": 15, "texture": 10}
JUNK = DRAWN | dict.fromkeys(COPIED, 5 / 3)
"""Weights of the kinds of junk."""
KINDS = ("photo", *JUNK)
COPIES_OF = 40
"""One photo in this number is an original of near-copies."""


@dataclass(frozen=True)
class Heap:
    """Images in random order, and the kind of each. Kinds are for reports, never for a selection."""

    images: UInt8[np.ndarray, "images side side channels"]
    kind: Int[np.ndarray, " images"]
    """Index of each image's kind in `KINDS`."""
    original: Int[np.ndarray, " images"]
    """Row of the original photo for a near-copy, number among `photos` for a photo, else -1."""


def heap(photos: Images, singles: Photos, count: int, seed: int, characters: str = junk.ALL_CHARACTERS) -> Heap:
    """Mix all `photos` with junk to a total of `count` images. Textures are cut from `singles`."""
    side, share = photos.shape[1], count - len(photos)
    ends = len(photos) + np.rint(np.cumsum([0, *JUNK.values()]) / sum(JUNK.values()) * share).astype(np.int64)
    order = np.random.default_rng([seed, len(KINDS)]).permutation(count)
    found = Heap(np.empty((count, side, side, 3), np.uint8), np.zeros(count, np.int8), np.full(count, -1, np.int32))
    found.images[order[: len(photos)]] = photos
    found.original[order[: len(photos)]] = np.arange(len(photos))
    makers: dict[str, Callable[[np.random.Generator, int, int], Images]] = {
        "text": partial(junk.text, characters=characters),
        "glyph": partial(junk.glyph, characters=characters),
        "screen": junk.screen,
        "gradient": junk.gradient,
        "noise": junk.noise,
        "texture": partial(junk.texture, singles),
    }
    for number, (kind, first, last) in enumerate(zip(JUNK, ends[:-1], ends[1:], strict=True), 1):
        rng = np.random.default_rng([seed, number])
        for start in range(first, last, AT_ONCE):
            rows = order[start : min(start + AT_ONCE, last)]
            found.kind[rows] = number
            if kind in COPIED:
                of = rng.integers(max(len(photos) // COPIES_OF, 1), size=len(rows))
                found.original[rows] = order[of]
                found.images[rows] = COPIED[kind](photos[of], rng)
            else:
                found.images[rows] = makers[kind](rng, len(rows), side)
    return found


def kinds_of(scores: Path, kind: Int[np.ndarray, " images"]) -> Int[np.ndarray, " kinds"]:
    """Count the selected images of each kind, from the `scores.parquet` of a selection from the heap."""
    import pyarrow.parquet as pq

    selected = pq.read_table(scores, columns=["reason"])["reason"].to_numpy() == "selected"
    return np.bincount(kind[selected], minlength=len(KINDS))
