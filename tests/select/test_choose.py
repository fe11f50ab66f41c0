import tracemalloc
from functools import partial

import numpy as np
import pytest

from dfkd.select import methods
from dfkd.select.choose import NEAR_DUPLICATE, SELECTED, TooFew, choose
from dfkd.select.methods import ImageScores
from dfkd.system.errors import RequestError


def no_features(rows):
    raise AssertionError("features are not needed here")


@pytest.fixture
def pool(rng):
    confidence = rng.random(200).astype(np.float32)
    confidence[[3, 50]] = np.nan
    readable = np.ones(200, dtype=bool)
    readable[[7, 8]] = False
    return ImageScores(confidence, 1 - confidence, rng.integers(0, 4, 200)), readable


def test_every_row_has_its_reason(pool):
    scores, readable = pool
    choice = choose(
        scores, readable, lambda s, r: methods.threshold(s, r, gamma=0.5), count=60, seed=0, features=no_features
    )
    counts = choice.counts()
    assert counts == {
        "selected": 60,
        "unreadable": 2,
        "non_finite": 2,
        "not_admitted": 98,
        "near_duplicate": 0,
        "not_drawn": 38,
    }
    assert (np.diff(choice.indices) > 0).all()
    assert (choice.reasons[choice.indices] == SELECTED).all()
    assert choice.admitted == 98
    assert (scores.confidence[choice.indices] >= choice.threshold).all()


def test_the_default_count_is_half_or_what_there_is(pool):
    scores, readable = pool
    half = choose(scores, readable, methods.random, count=None, seed=0, features=no_features)
    assert len(half.indices) == 98
    few = choose(
        scores, readable, lambda s, r: methods.threshold(s, r, gamma=0.1), count=None, seed=0, features=no_features
    )
    assert len(few.indices) == few.admitted == 20


@pytest.mark.parametrize("more", [{}, {"count": 3}, {"deduplicate": 0.9}, {"balance": "class"}, {"balance": "cluster"}])
def test_a_method_that_admits_nothing_is_refused(pool, more):
    """A selection without images cannot be read again."""
    with pytest.raises(RequestError, match=r"^the method admits none of 196 usable images$"):
        choose(
            *pool,
            lambda s, r: methods.Ranking(np.flatnonzero(s.confidence > 2)),
            **{"count": None, "seed": 0, "features": no_features, **more},
        )


def test_too_many_says_how_many_there_are(pool):
    scores, readable = pool
    with pytest.raises(TooFew, match=r"^count=197 is above the 196 images") as refused:
        choose(scores, readable, methods.random, count=197, seed=0, features=no_features)
    assert (refused.value.left, refused.value.usable) == (196, 196)


def test_balance_over_classes_and_near_duplicates(pool):
    scores, readable = pool
    twins = np.arange(200) // 2  # every odd row repeats the even one before it
    features = np.eye(100)[twins]
    choice = choose(
        scores, readable, methods.confidence, count=40, seed=0, features=lambda rows: features[rows], balance="class",
        deduplicate=0.99,
    )  # fmt: skip
    assert np.bincount(scores.prediction[choice.indices]).tolist() == [10, 10, 10, 10]
    assert len({*twins[choice.indices]}) == 40
    dropped = np.flatnonzero(choice.reasons == NEAR_DUPLICATE)
    assert all(scores.confidence[row] <= scores.confidence[row ^ 1] for row in dropped)


def test_balance__with_a_reach_picks_among_the_best_alone():
    """Of a class that has hardly anything good, what is far down is not taken for the sake of balance."""
    prediction = np.zeros(400, np.int64)
    prediction[[5, 90, *range(200, 400)]] = 1
    scores = ImageScores(np.linspace(1, 0.1, 400, dtype=np.float32), np.zeros(400, np.float32), prediction)
    for reach, ones in ((None, 50), (1.5, 2), (1.0, 2), (4.0, 50)):
        choice = choose(
            scores, np.ones(400, bool), methods.confidence, count=100, seed=0, features=no_features, balance="class",
            reach=reach,
        )  # fmt: skip
        assert len(choice.indices) == 100 and int(prediction[choice.indices].sum()) == ones, reach


def test_balance_over_clusters(rng):
    truth = np.repeat([0, 1, 2], [200, 60, 20])
    features = np.eye(3)[truth] + rng.normal(size=(280, 3)) * 0.01
    scores = ImageScores(
        rng.random(280).astype(np.float32), rng.random(280).astype(np.float32), np.zeros(280, np.int64)
    )
    chosen = choose(
        scores,
        np.ones(280, bool),
        methods.random,
        count=90,
        seed=1,
        features=lambda rows: features[rows],
        balance="cluster",
    )
    plain = choose(scores, np.ones(280, bool), methods.random, count=90, seed=1, features=no_features)
    assert np.bincount(truth[chosen.indices])[2] > np.bincount(truth[plain.indices])[2]


def test_the_order_of_the_pool_changes_nothing_but_the_order(pool, rng):
    scores, readable = pool
    order = rng.permutation(200)
    moved = ImageScores(scores.confidence[order], scores.entropy[order], scores.prediction[order])
    for method in (methods.confidence, methods.entropy, lambda s, r: methods.threshold(s, r, gamma=0.6)):
        a = choose(scores, readable, method, count=50, seed=0, features=no_features)
        b = choose(moved, readable[order], method, count=50, seed=0, features=no_features)
        assert set(a.indices) == set(order[b.indices])


def test_a_pool_of_one_image_and_one_of_none():
    one = ImageScores(np.array([0.5], np.float32), np.array([0.5], np.float32), np.array([0]))
    assert choose(
        one, np.array([True]), methods.threshold, count=None, seed=0, features=no_features
    ).indices.tolist() == [0]
    with pytest.raises(RequestError, match="no image of the pool can be used"):
        choose(one, np.array([False]), methods.threshold, count=None, seed=0, features=no_features)


@pytest.mark.parametrize(
    ("method", "balance", "most"),
    [
        (methods.confidence, "none", 22),
        (methods.random, "none", 22),
        (partial(methods.threshold, gamma=1.0), "none", 32),
        (methods.confidence, "class", 34),
    ],
)
def test_bytes_an_image_while_choosing(rng, method, balance, most):
    rows = 200_000
    scores = ImageScores(
        *(rng.random(rows, dtype=np.float32) for _ in range(2)), rng.integers(0, 10, rows, dtype=np.int32)
    )
    tracemalloc.start()
    try:
        choose(scores, np.ones(rows, bool), method, count=rows, seed=0, features=no_features, balance=balance)
        assert tracemalloc.get_traced_memory()[1] < most * rows
    finally:
        tracemalloc.stop()


def test_a_method_cannot_spoil_the_scores(pool):
    scores, _ = pool

    def sorts_in_place(scores, rng):
        scores.entropy.sort()
        return methods.random(scores, rng)

    whole = ImageScores(np.nan_to_num(scores.confidence), np.nan_to_num(scores.entropy), scores.prediction)
    with pytest.raises(ValueError, match="read-only"):
        choose(whole, np.ones(200, bool), sorts_in_place, count=5, seed=0, features=no_features)
    choose(whole, np.ones(200, bool), methods.random, count=5, seed=0, features=no_features)
    assert whole.entropy.flags.writeable


@pytest.mark.parametrize("rows", [[3, 3, 5], [0, 196], [-1, 2], [[0, 1]], [0.5, 1.0], np.ones(7, bool)])
@pytest.mark.parametrize("all_usable", [False, True])
def test_a_method_that_ranks_anything_but_different_images_is_refused(pool, rows, all_usable):
    scores, readable = pool
    if all_usable:
        scores = ImageScores(*(column[10:50] for column in (scores.confidence, scores.entropy, scores.prediction)))
        readable = np.ones(40, dtype=bool)
    ranking = methods.Ranking(np.arange(2))
    object.__setattr__(ranking, "rows", np.array(rows))  # its types are checked in tests alone
    with pytest.raises(RequestError, match="ranks rows that are not different numbers from 0 to"):
        choose(scores, readable, lambda scores, rng: ranking, count=2, seed=0, features=no_features)
