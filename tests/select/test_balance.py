import numpy as np
import pytest

from dfkd.select.balance import pick_balanced, quotas


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([10, 10, 10], 9, [3, 3, 3]),
        ([1, 10, 10], 9, [1, 4, 4]),
        ([0, 2, 50], 20, [0, 2, 18]),
        ([5, 5], 100, [5, 5]),
        ([4, 4, 4], 2, [1, 1, 0]),
        ([3], 0, [0]),
    ],
)
def test_quotas(sizes, count, expected):
    assert quotas(np.array(sizes), count).tolist() == expected


def test_quotas_are_as_even_as_can_be(rng):
    for _ in range(50):
        sizes = rng.integers(0, 40, 12)
        count = int(rng.integers(0, 300))
        got = quotas(sizes, count)
        assert got.sum() == min(count, sizes.sum())
        assert (got <= sizes).all()
        # nobody who could give more stands more than one below anybody else
        assert not (got < sizes).any() or got[got < sizes].min() >= got.max() - 1


def test_the_first_rows_of_every_group_are_picked():
    groups = np.array([2, 0, 0, 2, 1, 0, 2, 2])
    assert np.flatnonzero(pick_balanced(groups, 5)).tolist() == [0, 1, 2, 3, 4]  # two of 0, one of 1, two of 2
    assert pick_balanced(groups, 8).all()
