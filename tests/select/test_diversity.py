import numpy as np
import pytest

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


def test_cells_find_planted_duplicates(rng, monkeypatch):
    monkeypatch.setattr(diversity, "EXACT_UP_TO", 1000)
    base = rng.normal(size=(3000, 16))
    features = np.concatenate([base, base[:500] * 2 + 1e-3])
    dropped = near_duplicates(features.astype(np.float32), 0.999)
    assert not dropped[:3000].any()
    assert dropped[3000:].mean() > 0.95


def test_clusters_are_found_and_repeat(rng):
    centers = np.eye(4) * 10
    truth = rng.integers(0, 4, 400)
    features = (centers[truth] + rng.normal(size=(400, 4)) * 0.1).astype(np.float32)
    found = clusters(features, 4, seed=0)
    assert len({(a, b) for a, b in zip(truth, found, strict=True)}) == 4
    assert found.tolist() == clusters(features, 4, seed=0).tolist()
