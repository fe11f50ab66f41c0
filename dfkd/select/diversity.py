"""Near-duplicates and clusters among the teacher's penultimate features, with faiss."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

EXACT_UP_TO = 16_384
"""Rows up to which all pairs are compared. Above, only the nearest cells are searched (IVF).

The time of all pairs grows with the square of the rows. The time of the cells grows little faster than the rows. The
cells may miss a few pairs.
"""
ROWS_A_CELL, PROBED = 64, 8
"""Rows per cell, and cells that are searched for a row.

A row is compared with some 8 * 64 others. benchmarks/speed/results/scale.json has the share of pairs that this finds.
"""
QUERIES = 256
"""Rows that are searched at once."""


def near_duplicates(features: Float[np.ndarray, "rows *views width"], similarity: float) -> Bool[np.ndarray, " rows"]:
    """Return a mask of the rows whose cosine similarity to an earlier row that is kept is at least `similarity`.

    The best row comes first, so the better one of two near-duplicates stays. With several views of each row, the first
    view of the earlier row is compared with all views of the later one.
    """
    views = math.prod(features.shape[1:-1])
    described = unit_rows(features.reshape(-1, features.shape[-1]))
    index, unit = _index(described), described[::views]
    dropped = np.zeros(len(unit), dtype=bool)
    # range_search finds similarities above its radius; the next smaller float includes equality
    radius = float(np.nextafter(np.float32(similarity), np.float32(-2)))
    for start in range(0, len(unit), QUERIES):
        rows = np.arange(start, min(start + QUERIES, len(unit)))
        rows = rows[~dropped[rows]]
        if len(rows) == 0:
            continue
        limits, _, neighbors = index.range_search(unit[rows], radius)
        for i, row in enumerate(rows):
            if not dropped[row]:
                near = neighbors[limits[i] : limits[i + 1]] // views
                dropped[near[near > row]] = True
    return dropped


def clusters(
    features: Float[np.ndarray, "rows width"], count: int, seed: int, tries: int = 1
) -> Int[np.ndarray, " rows"]:
    """Return the nearest of `count` spherical k-means centers for every row, from the best of `tries` runs."""
    unit = unit_rows(features)
    kmeans = _spherical(unit, count, niter=20, nredo=tries, seed=seed % 2**31)
    return kmeans.index.search(unit, 1)[1][:, 0].astype(np.int64)


def spherical_centers(features: Float[np.ndarray, "rows width"], count: int) -> Float[np.ndarray, "count width"]:
    """Return the centers of `count` clusters by spherical k-means."""
    with _one_thread():
        return np.asarray(_spherical(unit_rows(features), count, niter=10, seed=0).centroids)


def nearest_centers(
    features: Float[np.ndarray, "rows width"], centers: Float[np.ndarray, "count width"] | None
) -> Int[np.ndarray, " rows"]:
    """Return the number of the nearest center for every row; 0 without centers."""
    import faiss

    if centers is None:
        return np.zeros(len(features), np.int64)
    index = faiss.IndexFlatIP(centers.shape[1])
    index.add(centers)
    found: Int[np.ndarray, " rows"] = index.search(unit_rows(features), 1)[1][:, 0].astype(np.int64)
    return found


def unit_rows(features: Float[np.ndarray, "rows width"]) -> Float[np.ndarray, "rows width"]:
    """Scale every row to length 1. A row of zeros stays."""
    rows = np.ascontiguousarray(features, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _spherical(unit: Float[np.ndarray, "rows width"], count: int, **settings: int) -> Any:
    """Return spherical k-means of rows of length 1. A cluster may be of a single row."""
    import faiss

    kmeans = faiss.Kmeans(unit.shape[1], count, spherical=True, min_points_per_centroid=1, **settings)
    kmeans.train(unit)
    return kmeans


def _index(unit: Float[np.ndarray, "rows width"]) -> Any:
    """Build an index of all rows for a search by inner product."""
    import faiss

    width = unit.shape[1]
    if len(unit) <= EXACT_UP_TO:
        index: Any = faiss.IndexFlatIP(width)
    else:
        # Random rows are the centers of the cells, found through a graph. With this many cells, k-means would take
        # O(n^2). Near-duplicates usually share a cell, whatever the centers.
        drawn = np.random.default_rng(0).choice(len(unit), len(unit) // ROWS_A_CELL, replace=False)
        centers = np.unique(unit[drawn], axis=0)  # many equal centers would disconnect the graph
        cells = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
        cells.hnsw.efSearch = 4 * PROBED
        with _one_thread():  # with several threads the graph depends on their timing
            cells.add(centers)
        index = faiss.IndexIVFFlat(cells, width, len(centers), faiss.METRIC_INNER_PRODUCT)
        index.train(centers)  # the cells exist already
        index.nprobe = PROBED
    index.add(unit)
    return index


@contextmanager
def _one_thread() -> Iterator[None]:
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
