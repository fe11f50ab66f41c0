"""Near-duplicates cluster by cluster, from files, against those that are found in memory."""

import tracemalloc
from functools import partial

import numpy as np
import pytest

from dfkd.select import duplicates_on_disk, methods
from dfkd.select.choose import choose
from dfkd.select.diversity import near_duplicates
from dfkd.select.duplicates_on_disk import near_duplicates_on_disk
from dfkd.select.methods import ImageScores, Traits
from dfkd.select.streaming import choose_streaming


@pytest.fixture
def photos(rng):
    """Features as of photos: clusters, few directions, rectified; a ninth of them are near to others."""
    directions = rng.normal(size=(12, 48))
    seen = rng.normal(size=(40, 12))[rng.integers(0, 40, 4000)] + rng.normal(size=(4000, 12))
    features = np.maximum(seen @ directions, 0)
    near = features[:500] * (1 + 0.02 * rng.normal(size=(500, 48)))
    return np.concatenate([features, near])[rng.permutation(4500)].astype(np.float16)


def in_blocks(rows, size=700):
    """The rows as they are, in blocks; the first one is the best."""
    keys = np.arange(rows, 0, -1, dtype=np.uint32)
    slices = [slice(start, start + size) for start in range(0, rows, size)]
    return lambda: ((np.arange(rows)[some], keys[some]) for some in slices)


def found(photos, folder, similarity=0.99):
    dropped = np.zeros(len(photos), bool)
    for rows in near_duplicates_on_disk(in_blocks(len(photos)), len(photos), photos.__getitem__, similarity, folder):
        assert not dropped[rows].any()
        dropped[rows] = True
    assert not folder.exists(), "the features are not kept"
    return dropped


def test_near_duplicates_on_disk__of_one_cluster_are_those_in_memory(photos, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "000000").write_bytes(b"of a command that was killed")
    assert np.array_equal(found(photos, tmp_path / "x"), near_duplicates(photos, 0.99))


def test_near_duplicates_on_disk__of_several_clusters_miss_only_pairs_in_two(photos, tmp_path, monkeypatch):
    exact = near_duplicates(photos, 0.99)
    assert exact.sum() > 450
    monkeypatch.setattr(duplicates_on_disk, "PIECE", 500)
    dropped = found(photos, tmp_path / "x")
    assert (dropped & exact).sum() / exact.sum() > 0.95
    assert dropped[~exact].sum() <= (exact & ~dropped).sum() * 2
    assert np.array_equal(dropped, found(photos, tmp_path / "y")), "they repeat"


def test_near_duplicates_on_disk__of_one_image_many_times_keep_the_best(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates_on_disk, "PIECE", 500)
    monkeypatch.setattr(duplicates_on_disk, "_LARGEST", 1000)
    dropped = found(np.concatenate([photos[:1], np.tile(photos[:1] * 2, (3000, 1)), photos[1:]]), tmp_path / "x")
    assert not dropped[0] and dropped[1:3001].all()


def test_near_duplicates_on_disk__hold_the_features_of_a_cluster_at_a_time(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(duplicates_on_disk, "PIECE", 500)
    monkeypatch.setattr(duplicates_on_disk, "_MOST_SAMPLED", 100)
    base = rng.normal(size=(1000, 64)).astype(np.float16)

    def peak(times):
        tracemalloc.start()
        try:
            rows = 1000 * times
            list(near_duplicates_on_disk(in_blocks(rows), rows, lambda r: base[r % 1000], 0.99, tmp_path / "x"))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)  # imports
    assert peak(8) - peak(4) < 4000 * 64 * 2 / 2, "less than half of the features of the other rows"


@pytest.mark.parametrize("balance", ["none", "class"])
def test_choose_streaming__drops_the_near_duplicates_that_choose_drops(photos, tmp_path, in_parts, rng, balance):
    rows = len(photos)
    scores = ImageScores(
        rng.random(rows, np.float32).round(3), rng.random(rows, np.float32), rng.integers(0, 3, rows).astype(np.int32)
    )
    readable = rng.random(rows) > 0.01
    given = {"gamma": 0.6, "draw": "confidence"}
    known = choose(
        scores, readable, lambda s, r: methods.threshold(s, r, **given), count=900, seed=0,
        features=photos.__getitem__, balance=balance, deduplicate=0.99,
    )  # fmt: skip
    deduplicate = partial(near_duplicates_on_disk, features=photos.__getitem__, similarity=0.99, folder=tmp_path / "x")
    streamed = choose_streaming(
        in_parts(scores, readable, 999), rows, Traits.of(methods.threshold).scale(**given), count=900, seed=0,
        groups=3 if balance == "class" else None, deduplicate=[deduplicate],
    )  # fmt: skip
    assert known.counts()["near_duplicate"] > 100
    assert np.array_equal(streamed.reasons, known.reasons)
    assert (streamed.threshold, streamed.admitted) == (known.threshold, known.admitted)
