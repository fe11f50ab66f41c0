"""Near-duplicates and clusters among the teacher's penultimate features, with faiss."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

EXACT_UP_TO = 65_536
"""Above so many rows the search probes the nearest cells only (IVF): time grows as n^1.5, and some pairs are missed."""
QUERIES = 256


def near_duplicates(features: Float[np.ndarray, "rows width"], similarity: float) -> Bool[np.ndarray, " rows"]:
    """True for the rows that are at least so similar (cosine) to an earlier row that is kept.

    Rows come best first, so that of two near-duplicates the better one stays.
    """
    unit = _unit(features)
    index = _index(unit)
    dropped = np.zeros(len(unit), dtype=bool)
    # range_search wants strictly more than its radius; the width of one float below includes equality
    radius = float(np.nextafter(np.float32(similarity), np.float32(-2)))
    for start in range(0, len(unit), QUERIES):
        rows = np.arange(start, min(start + QUERIES, len(unit)))
        rows = rows[~dropped[rows]]
        if len(rows) == 0:
            continue
        limits, _, neighbors = index.range_search(unit[rows], radius)
        for i, row in enumerate(rows):
            if not dropped[row]:
                near = neighbors[limits[i] : limits[i + 1]]
                dropped[near[near > row]] = True
    return dropped


def clusters(features: Float[np.ndarray, "rows width"], count: int, seed: int) -> Int[np.ndarray, " rows"]:
    """The number of the nearest of `count` spherical k-means centers, for every row."""
    import faiss

    unit = _unit(features)
    kmeans = faiss.Kmeans(unit.shape[1], count, niter=20, seed=seed % 2**31, spherical=True, min_points_per_centroid=1)
    kmeans.train(unit)
    return kmeans.index.search(unit, 1)[1][:, 0].astype(np.int64)


def _unit(features: Float[np.ndarray, "rows width"]) -> Float[np.ndarray, "rows width"]:
    rows = np.ascontiguousarray(features, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _index(unit: Float[np.ndarray, "rows width"]) -> Any:
    import faiss

    width = unit.shape[1]
    if len(unit) <= EXACT_UP_TO:
        index: Any = faiss.IndexFlatIP(width)
    else:
        cells = int(4 * np.sqrt(len(unit)))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = 16
        sample = np.random.default_rng(0).choice(len(unit), min(len(unit), 64 * cells), replace=False)
        index.train(unit[np.sort(sample)])
    index.add(unit)
    return index
