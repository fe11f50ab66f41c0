import faiss
import numpy as np
import pytest
import torch

from dfkd.select import diversity
from dfkd.select.diversity import clusters, near_duplicates


def reference(features, similarity):
    """Row by row: drop what is near to an earlier row that is kept."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    kept = []
    for i, row in enumerate(unit):
        if all(row @ unit[j] < similarity for j in kept):
            kept.append(i)
    return ~np.isin(np.arange(len(unit)), kept)


@pytest.mark.parametrize("similarity", [0.3, 0.9, 0.99])
def test_near_duplicates_against_row_by_row(rng, similarity):
    base = rng.normal(size=(120, 6))
    features = np.concatenate([base, base[:60] + 0.02 * rng.normal(size=(60, 6)), base[:5]])[rng.permutation(185)]
    got = near_duplicates(features.astype(np.float32), similarity)
    assert got.tolist() == reference(features, similarity).tolist()
    assert got.any()


def test_of_two_equal_rows_the_earlier_stays():
    features = np.array([[1, 0], [0, 1], [2, 0], [0, 0]], dtype=np.float16)
    assert near_duplicates(features, 1.0).tolist() == [False, False, True, False]


@pytest.fixture
def photos(rng):
    """Features as of photos: clusters, few directions, rectified; a ninth of them are near to others."""
    directions = rng.normal(size=(12, 48))
    seen = rng.normal(size=(40, 12))[rng.integers(0, 40, 8000)] + rng.normal(size=(8000, 12))
    features = np.maximum(seen @ directions, 0)
    near = features[:1000] * (1 + 0.05 * rng.normal(size=(1000, 48)))
    return np.concatenate([features, near])[rng.permutation(9000)].astype(np.float32)


def test_cells_find_what_all_pairs_find(photos, monkeypatch):
    exact = near_duplicates(photos, 0.99)
    assert exact.mean() > 0.1
    monkeypatch.setattr(diversity, "EXACT_UP_TO", 1000)
    found = near_duplicates(photos, 0.99)
    assert (found & exact).sum() / exact.sum() > 0.99
    assert found[~exact].sum() <= (exact & ~found).sum() * 2  # only what a missed one has let through


def test_cells_repeat_whatever_the_threads(photos, monkeypatch):
    monkeypatch.setattr(diversity, "EXACT_UP_TO", 1000)
    once, threads = near_duplicates(photos, 0.95), torch.get_num_threads()
    faiss.omp_set_num_threads(4)  # torch's threads, too, where both have one OpenMP library
    try:
        assert near_duplicates(photos, 0.95).tolist() == once.tolist()
        assert faiss.omp_get_max_threads() == 4
    finally:
        faiss.omp_set_num_threads(threads)


def test_one_image_a_thousand_times_is_kept_once(photos, monkeypatch):
    monkeypatch.setattr(diversity, "EXACT_UP_TO", 1000)
    blank = np.tile(photos[:1] * 2, (3000, 1))
    dropped = near_duplicates(np.concatenate([blank, photos]), 0.99)
    assert not dropped[0]
    assert dropped[1:3001].all()
    alone = near_duplicates(photos, 0.99)
    assert (dropped[3001:] == alone[1:]).mean() > 0.99  # the others are found beside it as without it


def test_clusters_are_found_and_repeat(rng):
    centers = np.eye(4) * 10
    truth = rng.integers(0, 4, 400)
    features = (centers[truth] + rng.normal(size=(400, 4)) * 0.1).astype(np.float32)
    found = clusters(features, 4, seed=0)
    assert len({(a, b) for a, b in zip(truth, found, strict=True)}) == 4
    assert found.tolist() == clusters(features, 4, seed=0).tolist()
