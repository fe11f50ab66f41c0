"""Near-copies of an image by its pixels: recompressed, recolored, mirrored or resized. No network reads them.

A teacher's features are made to be equal within a class, and hardly tell a copy from another image of its class.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from dfkd.data import Pool
from dfkd.select.choose import Features
from dfkd.select.diversity import near_duplicates

GRID = 8
"""Side of the grid of mean luminances that describes an image."""
PIECE, SMALLEST_PIECE = 16_384, 1_024
"""Most and fewest rows that are compared with the rows before them at once."""
READ = 256
"""Images that are read at once."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R 601. `decode.fit` has the same weights, but rounds to whole gray levels."""


def describe(pixels: UInt8[np.ndarray, "images height width channels"]) -> Float[np.ndarray, "images cells"]:
    """Return mean luminances on a grid, minus their mean over the image. The cosine of two such rows compares images.

    Subtracting the mean and comparing by the cosine ignores brightness and contrast.
    """
    gray = pixels[..., 0].astype(np.float32) if pixels.shape[3] == 1 else pixels.astype(np.float32) @ _LUMA
    cells = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(gray)[:, None], GRID).numpy()
    return (cells - cells.mean(axis=(2, 3), keepdims=True)).reshape(len(cells), -1)


def mirrored(described: Float[np.ndarray, "images cells"]) -> Float[np.ndarray, "images cells"]:
    """Return the descriptions of the mirrored images."""
    return described.reshape(-1, GRID, GRID)[:, :, ::-1].reshape(described.shape)


def descriptors(pool: Pool) -> Features:
    """Return the function from pool rows to their descriptions. It reads the images again."""

    def read(rows: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "rows cells"]:
        found = np.empty((len(rows), GRID**2), np.float32)
        for start in range(0, len(rows), READ):
            found[start : start + READ] = describe(pool.images(rows[start : start + READ]).pixels)
        return found

    return read


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
        compared = np.concatenate([kept, found]).reshape(-1, GRID**2)
        near = near_duplicates(compared, similarity)[2 * len(kept) :: 2]
        dropped[start : start + size] = near
        kept, start = np.concatenate([kept, found[~near]]), start + size
    return dropped
