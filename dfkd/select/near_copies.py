"""Near-copies of an image by its pixels: recompressed, recolored, mirrored or resized. No network reads them.

A teacher's features are made to be equal within a class, and hardly tell a copy from another image of its class.
"""

import itertools

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from dfkd.select.choose import Features
from dfkd.select.diversity import near_duplicates

GRID = 8
"""Side of the grid of mean luminances that describes an image."""
LINES = 8
"""Lines of pixels for each cell that are enough: neighboring lines of a photograph are alike."""
PIECE, SMALLEST_PIECE = 16_384, 1_024
"""Most and fewest rows that are compared with the rows before them at once."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R 601. `decode.fit` has the same weights, but rounds to whole gray levels."""


def describe(pixels: UInt8[np.ndarray, "images height width channels"]) -> Float[np.ndarray, "images cells"]:
    """Return mean luminances on a grid, minus their mean over the image. The cosine of two such rows compares images.

    Subtracting the mean and comparing by the cosine ignores brightness and contrast. An image smaller than the grid
    repeats its pixels. Of a large image every n-th line is read, at least `LINES` for each cell.
    """
    images, height, width, channels = pixels.shape
    downward, across = _cells(height, max(1, height // (GRID * LINES))), _cells(width, 1)
    lines = pixels.reshape(images, height, width * channels)
    bands = [lines[:, cell].sum(1, dtype=np.uint32) / len(range(height)[cell]) for cell in downward]
    columns = np.stack(bands, axis=1).reshape(images, GRID, width, channels)
    colors = np.stack([columns[:, :, cell].mean(2) for cell in across], axis=2).astype(np.float32)
    luminances = colors[..., 0] if channels == 1 else colors @ _LUMA
    return (luminances - luminances.mean(axis=(1, 2), keepdims=True)).reshape(images, -1)


def _cells(side: int, step: int) -> list[slice]:
    """Return the pixels of each cell along a side: every `step`-th of them, and at least one."""
    edges = [i * side // GRID for i in range(GRID + 1)]
    return [slice(first, max(last, first + 1), step) for first, last in itertools.pairwise(edges)]


def mirrored(described: Float[np.ndarray, "images cells"]) -> Float[np.ndarray, "images cells"]:
    """Return the descriptions of the mirrored images."""
    return described.reshape(-1, GRID, GRID)[:, :, ::-1].reshape(described.shape)


def near_copies(
    rows: Int[np.ndarray, " rows"], described: Features, similarity: float, needed: int | None = None
) -> Bool[np.ndarray, " rows"]:
    """Return a mask of the rows with at least this cosine similarity to an earlier row that is kept, or to its mirror.

    The best row comes first. Rows are read and compared until `needed` are kept; None compares all.
    """
    dropped, start = np.zeros(len(rows), dtype=bool), 0
    kept = np.empty((0, 2, GRID**2), np.float32)  # each row and its mirror
    while start < len(rows) and (needed is None or len(kept) < needed):
        size = PIECE if needed is None else min(PIECE, max(SMALLEST_PIECE, needed - len(kept)))
        read = described(rows[start : start + size])
        found = np.stack([read, mirrored(read)], axis=1)
        near = near_duplicates(np.concatenate([kept, found]), similarity)[len(kept) :]
        dropped[start : start + size] = near
        kept, start = np.concatenate([kept, found[~near]]), start + size
    return dropped
