"""Near-duplicates among more features than memory holds: cluster by cluster, each in its own file.

Images are first assigned to clusters of their features, and then compared within each cluster (SemDeDup, 2023,
https://arxiv.org/abs/2303.09540). Two near-duplicates in different clusters are both kept.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt32

from dfkd.select.choose import Features
from dfkd.select.diversity import near_duplicates, nearest_centers, spherical_centers
from dfkd.system.files import make_folder

PIECE = 65_536
"""Rows of a cluster on average. Their features are in memory at once."""
_LARGEST = 4 * PIECE
"""Largest number of rows of a cluster that are compared at once. A larger cluster goes in pieces, best rows first."""
_SAMPLED, _MOST_SAMPLED = 64, 32_768
"""Rows per cluster, and rows in total, from which the centers are computed."""
Ranked = tuple[Int[np.ndarray, " rows"], UInt32[np.ndarray, " rows"]]
"""Rows of the pool, and the keys that rank them: the larger key first, the earlier row of equal keys."""


def near_duplicates_on_disk(
    blocks: Callable[[], Iterable[Ranked]], count: int, features: Features, similarity: float, folder: Path
) -> Iterator[Int[np.ndarray, " dropped"]]:
    """Yield, cluster by cluster, the rows that are near-duplicates of a better row that is kept.

    Near-duplicates have a cosine similarity of at least `similarity`. `blocks` reads the `count` rows to compare, block
    by block. `folder` holds their features during the search, at 2 bytes per number. With one cluster, the result is
    that of `near_duplicates`.
    """
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed command
    make_folder(folder)
    try:
        clusters = max(1, -(-count // PIECE))
        centers = _centers(blocks, count, features, clusters)
        width = 0
        for rows, keys in blocks():
            if len(rows):
                found = features(rows)
                width = found.shape[1]
                _append(folder, rows, keys, found, nearest_centers(found, centers))
        for path in sorted(folder.iterdir()):
            yield _dropped(np.fromfile(path, _record(width)), similarity)
            path.unlink()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _centers(
    blocks: Callable[[], Iterable[Ranked]], count: int, features: Features, clusters: int
) -> Float[np.ndarray, "clusters width"] | None:
    """Compute the centers of the clusters from evenly spaced rows; None for one cluster."""
    if clusters == 1:
        return None
    step, seen = max(1, count // min(_SAMPLED * clusters, _MOST_SAMPLED)), 0
    sampled: list[np.ndarray] = []
    for rows, _ in blocks():
        some = rows[-seen % step :: step]
        if len(some):
            sampled.append(features(some))
        seen += len(rows)
    return spherical_centers(np.concatenate(sampled), clusters)


def _record(width: int) -> np.dtype[Any]:
    return np.dtype([("row", np.int64), ("key", np.uint32), ("features", np.float16, (width,))])


def _append(
    folder: Path,
    rows: Int[np.ndarray, " rows"],
    keys: UInt32[np.ndarray, " rows"],
    features: Float[np.ndarray, "rows width"],
    cluster: Int[np.ndarray, " rows"],
) -> None:
    """Append each row to the file of its cluster."""
    records = np.empty(len(rows), _record(features.shape[1]))
    records["row"], records["key"], records["features"] = rows, keys, features
    order = np.argsort(cluster, kind="stable")
    numbers, starts = np.unique(cluster[order], return_index=True)
    for number, some in zip(numbers.tolist(), np.split(records[order], starts[1:]), strict=True):
        with (folder / f"{number:06d}").open("ab") as file:
            some.tofile(file)


def _dropped(records: np.ndarray, similarity: float) -> Int[np.ndarray, " dropped"]:
    """Return the near-duplicates of one cluster.

    In a very large cluster, each piece is compared with itself and with the best rows that are kept.
    """
    records = records[np.lexsort((records["row"], -records["key"].astype(np.int64)))]
    if len(records) <= _LARGEST:
        return np.asarray(records["row"][near_duplicates(records["features"], similarity)])
    kept, dropped = records[:0], []
    for start in range(0, len(records), PIECE):
        piece = records[start : start + PIECE]
        near = near_duplicates(np.concatenate([kept["features"], piece["features"]]), similarity)[len(kept) :]
        dropped.append(piece["row"][near])
        kept = np.concatenate([kept, piece[~near]])[:PIECE]
    return np.concatenate(dropped)
