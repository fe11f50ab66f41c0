"""What holds for every selection, whatever the scores are."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dfkd.formats.manifest import write_manifest
from dfkd.formats.shards import Rows, Shards, write_shards
from dfkd.select import methods
from dfkd.select.balance import pick_balanced, quotas
from dfkd.select.choose import NEAR_DUPLICATE, NON_FINITE, NOT_ADMITTED, SELECTED, UNREADABLE, choose
from dfkd.select.diversity import near_duplicates
from dfkd.select.methods import ImageScores
from dfkd.system.errors import RequestError

METHODS = ["threshold", "random", "confidence", "entropy"]
shares = st.floats(0, 1, width=32)


@st.composite
def pools(draw, distinct=False):
    """Scores (some not finite), whether each image is readable, features."""
    rows = draw(st.integers(1, 40))
    scores = st.one_of(shares, st.sampled_from([0.0, 0.5, 1.0, np.nan, np.inf]))
    confidence, entropy = (
        np.array(
            draw(st.lists(shares if distinct else scores, min_size=rows, max_size=rows, unique=distinct)), np.float32
        )
        for _ in range(2)
    )
    prediction = np.array(draw(st.lists(st.integers(0, 4), min_size=rows, max_size=rows)))
    readable = np.array(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    features = np.random.default_rng(draw(st.integers(0, 99))).integers(-1, 2, (rows, 3)).astype(np.float32)
    return ImageScores(confidence, entropy, prediction), readable, features


def pick(pool, method, gamma, count, balance="none", deduplicate=None, seed=0):
    scores, readable, features = pool
    target = getattr(methods, method)
    options = {"gamma": gamma} if method == "threshold" else {}
    return choose(
        scores,
        readable,
        lambda s, rng: target(s, rng, **options),
        count=count,
        seed=seed,
        features=lambda rows: features[rows],
        balance=balance,
        deduplicate=deduplicate,
    )


@given(
    pools(),
    st.sampled_from(METHODS),
    st.floats(0.01, 1),
    st.one_of(st.none(), st.integers(1, 40)),
    st.sampled_from(["none", "class"]),
    st.one_of(st.none(), st.just(0.9)),
)
def test_a_selection_is_what_was_asked_for(pool, method, gamma, count, balance, deduplicate):
    scores, readable, features = pool
    usable = readable & np.isfinite(scores.confidence) & np.isfinite(scores.entropy)
    try:
        choice = pick(pool, method, gamma, count, balance, deduplicate)
    except RequestError:
        assert not usable.any() or count is not None
        return
    picked = choice.indices
    assert count is None or len(picked) == count
    assert len(set(picked.tolist())) == len(picked) > 0
    assert np.array_equal(np.sort(picked), picked)
    assert np.array_equal(np.flatnonzero(choice.reasons == SELECTED), picked)
    assert usable[picked].all()  # no rejected image
    assert np.array_equal(choice.reasons == UNREADABLE, ~readable)
    assert np.array_equal(choice.reasons == NON_FINITE, readable & ~usable)
    assert sum(choice.counts().values()) == len(readable)
    if method == "threshold":
        assert (scores.confidence[picked] >= choice.threshold).all()
        assert (scores.confidence[choice.reasons == NOT_ADMITTED] < choice.threshold).all()
        assert choice.admitted == (scores.confidence[usable] >= choice.threshold).sum() >= gamma * usable.sum() - 1e-6
    if deduplicate is not None:
        assert not near_duplicates(features[picked], deduplicate).any()
    else:
        assert NEAR_DUPLICATE not in choice.reasons


@given(pools(distinct=True), st.sampled_from(["threshold", "confidence", "entropy"]), st.floats(0.1, 1), st.randoms())
def test_the_order_of_the_pool_decides_nothing(pool, method, gamma, random):
    """With scores that differ (ties fall to the earlier row, by design) and methods that draw nothing."""
    scores, readable, features = pool
    assume(readable.any())
    order = list(range(len(readable)))
    random.shuffle(order)
    order = np.array(order)
    shuffled = ImageScores(scores.confidence[order], scores.entropy[order], scores.prediction[order])
    for balance in ("none", "class"):
        before = pick(pool, method, gamma, None, balance)
        after = pick((shuffled, readable[order], features[order]), method, gamma, None, balance)
        assert before.threshold == after.threshold
        assert np.array_equal(before.reasons[order], after.reasons)
        assert set(order[after.indices]) == set(before.indices.tolist())


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8).map(np.array), st.integers(0, 300))
def test_quotas_are_as_even_as_the_groups_allow(sizes, count):
    taken = quotas(sizes, count)
    assert taken.sum() == min(count, sizes.sum())
    assert (taken >= 0).all() and (taken <= sizes).all()
    short = taken < sizes
    if short.any():  # who could give more gives as many as anybody, or one less
        assert taken[short].min() >= taken.max() - 1


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40).map(np.array), st.integers(1, 40))
def test_of_every_group_the_best_are_picked(groups, count):
    picked = pick_balanced(groups, count)
    assert picked.sum() == min(count, len(groups))
    for group in np.unique(groups):
        rows = picked[groups == group]
        assert np.array_equal(rows, np.sort(rows)[::-1])  # first the picked ones


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 30), st.integers(1, 4)), elements=st.floats(-5, 5, width=32)),
    st.floats(0.05, 1),
)
def test_of_near_duplicates_the_first_stays_and_no_two_stay(features, similarity):
    dropped = near_duplicates(features, similarity)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(norms, 1e-12)
    alike = unit @ unit.T
    kept = np.flatnonzero(~dropped)
    assert not dropped[0]
    among = alike[np.ix_(kept, kept)] - 2 * np.eye(len(kept))
    assert (among < similarity + 1e-5).all()
    for row in np.flatnonzero(dropped):
        earlier = kept[kept < row]
        assert (alike[row, earlier] >= similarity - 1e-5).any()


@pytest.mark.parametrize("channels", [1, 3])
@given(data=st.data())
def test_a_shard_gives_back_what_was_written(tmp_path_factory, manifest_of, channels, data):
    side, classes = data.draw(st.integers(1, 6)), data.draw(st.integers(2, 5))
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    parts = [
        Rows(
            image=rng.integers(0, 256, (n, side, side, channels), dtype=np.uint8),
            source=data.draw(st.lists(names, min_size=n, max_size=n)),
            prediction=rng.integers(0, classes, n),
            confidence=rng.random(n, dtype=np.float32),
            entropy=rng.random(n, dtype=np.float32),
            logits=rng.normal(size=(n, classes)).astype(np.float16),
            kept_classes=rng.random((n, classes)) < 0.5,
        )
        for n in lengths
    ]
    folder = tmp_path_factory.mktemp("shards") / "s"
    files = write_shards(folder, parts, "0" * 16)
    write_manifest(folder, manifest_of(files, side, classes, channels))
    shards = Shards(folder)
    shards.verify()
    order = rng.permutation(sum(lengths))
    assert np.array_equal(shards.pixels(order), np.concatenate([p.image for p in parts])[order])
    assert shards.column("source").tolist() == [name for part in parts for name in part.source]
    for name in ("prediction", "confidence", "entropy", "logits", "kept_classes"):
        assert np.array_equal(shards.column(name), np.concatenate([getattr(p, name) for p in parts])), name
