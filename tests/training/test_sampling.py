from collections import Counter

import numpy as np
import pytest

from dfkd.system.errors import RequestError
from dfkd.training.sampling import GroupedOrder, ShuffledOrder, Stored, classes, clusters_of, shuffled, superclasses

SIZES = [1, 3, 7, 0, 12, 30]


def groups_of(sizes, rng):
    return rng.permutation(np.repeat(np.arange(len(sizes)), sizes))


def batches(order, size, count, first=0):
    return [order.rows(number * size, size) for number in range(first, first + count)]


def test_shuffled_epochs_are_permutations_drawn_from_seed_and_epoch():
    rows = ShuffledOrder(7, 3).rows(0, 21)
    for epoch in range(3):
        expected = np.random.default_rng([3, epoch]).permutation(7)
        assert rows[epoch * 7 : epoch * 7 + 7].tolist() == expected.tolist()


@pytest.mark.parametrize("make", [lambda g: ShuffledOrder(len(g), 5), lambda g: GroupedOrder(g, 8, 4, 5)])
def test_what_stands_at_a_position_does_not_depend_on_what_was_asked_before(make, rng):
    groups = groups_of(SIZES, rng)
    whole = make(groups).rows(0, 400)
    assert whole.shape == (400,)
    order = make(groups)
    for position, count in [(300, 17), (0, 8), (16, 8), (5, 100), (399, 1), (300, 17), (0, 0)]:
        assert order.rows(position, count).tolist() == whole[position : position + count].tolist()
    assert make(groups).rows(100_000_000, 8).tolist() == order.rows(100_000_000, 8).tolist()


def test_the_seed_decides_the_order(rng):
    groups = groups_of(SIZES, rng)
    orders = [GroupedOrder(groups, 8, 4, seed).rows(0, 80).tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_every_group_and_every_seed_has_its_own_order_of_images():
    groups = np.repeat([0, 1], 20)
    first, second = (GroupedOrder(groups, 8, 4, seed).rows(0, 40) for seed in (0, 1))
    halves = [first[first < 20].tolist(), (first[first >= 20] - 20).tolist(), second[second < 20].tolist()]
    assert sorted(halves[0]) == sorted(halves[1]) == sorted(halves[2]) == list(range(20))
    assert halves[0] != halves[1]
    assert halves[0] != halves[2]


@pytest.mark.parametrize(("batch", "each"), [(8, 4), (4, 4), (6, 2), (20, 4), (8, 2), (40, 2), (12, 3)])
def test_a_batch_has_so_many_images_of_so_many_groups(batch, each, rng):
    """Five groups have images: with fewer turns than groups they are different ones, with more the shares are even."""
    groups = groups_of(SIZES, rng)
    for rows in batches(GroupedOrder(groups, batch, each, 0), batch, 60):
        turns = Counter(groups[rows].tolist())
        assert all(count % each == 0 for count in turns.values())
        shares = [turns[group] // each for group in (0, 1, 2, 4, 5)]
        assert sum(shares) == batch // each
        assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("each", [1, 2, 3, 5, 8])
def test_in_a_group_every_image_is_seen_before_one_is_seen_twice(each, rng):
    groups = groups_of(SIZES, rng)
    stream = np.concatenate(batches(GroupedOrder(groups, 2 * each, each, 0), 2 * each, 300))
    for group, size in enumerate(SIZES):
        seen = stream[groups[stream] == group]
        for stop in range(0, len(seen), each):
            counts = np.bincount(seen[:stop], minlength=len(groups))[groups == group]
            assert counts.max() - counts.min() <= 1
        for start in range(0, len(seen), each):
            turn = Counter(seen[start : start + each].tolist()).values()
            assert max(turn) <= -(-each // size)  # different ones, where there are enough


def test_groups_have_the_same_share_whatever_their_sizes(rng):
    groups = groups_of(SIZES, rng)
    rows = np.concatenate(batches(GroupedOrder(groups, 12, 4, 0), 12, 5 * 20))
    assert Counter(groups[rows].tolist()) == dict.fromkeys((0, 1, 2, 4, 5), 240)


def test_a_batch_is_random_in_its_groups_and_its_images(rng):
    groups = np.repeat(np.arange(10), 50)
    found = batches(GroupedOrder(groups, 8, 4, 0), 8, 200)
    assert len({tuple(np.unique(groups[rows])) for rows in found}) > 40  # of 45 pairs
    assert len({tuple(np.sort(rows)) for rows in found}) == 200


@pytest.mark.parametrize(
    ("batch", "each", "message"),
    [
        (8, 0, "^each=0 is not at least 1"),
        (10, 4, "batches of 10 images cannot hold groups of each=4; 8 images can"),
        (3, 4, "batches of 3 images cannot hold groups of each=4; 4 images can"),
        (1, 4, "4 images can"),
    ],
)
def test_batches_that_cannot_be_filled_evenly_are_refused(batch, each, message):
    with pytest.raises(RequestError, match=message):
        GroupedOrder(np.arange(20) % 3, batch, each, 0)


def test_no_images_are_refused():
    with pytest.raises(RequestError, match="no images"):
        GroupedOrder(np.empty(0, dtype=np.int64), 8, 4, 0)


def test_superclasses_are_clusters_of_logits(rng):
    centers = np.eye(6)[:3] * 10
    truth = rng.integers(0, 3, 300)
    logits = (centers[truth] + rng.normal(size=(300, 6)) * 0.1).astype(np.float16)
    found = clusters_of(logits, 3, 0)
    assert len({(a, b) for a, b in zip(truth, found, strict=True)}) == 3
    order = GroupedOrder(found, 6, 2, 0)
    assert sorted(Counter(truth[order.rows(0, 6)].tolist()).values()) == [2, 2, 2]


@pytest.mark.parametrize("count", [0, 11])
def test_more_clusters_than_images_are_refused(count):
    with pytest.raises(RequestError, match=f"{count} clusters of 10 images"):
        clusters_of(np.zeros((10, 3), dtype=np.float32), count, 0)


def test_what_batches_names_are_made_of_the_selections_columns(rng):
    columns = {"prediction": np.repeat([0, 1, 2, 3], 10), "logits": np.repeat(np.eye(4, dtype=np.float16), 10, axis=0)}
    stored = Stored(40, columns.__getitem__)
    assert sorted(shuffled(stored, 8, 0).rows(0, 40)) == list(range(40))
    clusters = clusters_of(columns["logits"].astype(np.float32), 4, 0)
    for order, groups in (
        (classes(stored, 8, 0, each=4), columns["prediction"]),
        (superclasses(stored, 8, 0, each=4, count=4), clusters),
    ):
        for batch in batches(order, 8, 5):
            assert sorted(Counter(groups[batch]).values()) in ([4, 4], [8])
