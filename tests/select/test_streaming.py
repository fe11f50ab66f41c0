"""Choosing while scores are read."""

import tracemalloc

import numpy as np
import pytest

from dfkd.select import methods, streaming
from dfkd.select.choose import TooFew, choose
from dfkd.select.methods import ImageScores, Scale, Traits
from dfkd.select.streaming import choose_streaming
from dfkd.system.errors import RequestError


@pytest.mark.parametrize("groups", [1, 3, 1000, 100_000])
def test_choose_streaming__of_many_classes_counts_in_narrower_digits(in_parts, rng, groups, monkeypatch):
    monkeypatch.setattr(streaming, "_COUNTERS", 14)
    rows = 5000
    scores = ImageScores(
        rng.random(rows, np.float32).round(2), rng.random(rows, np.float32), rng.integers(0, groups, rows)
    )
    readable = np.ones(rows, bool)
    known = choose(scores, readable, methods.confidence, count=2000, seed=0, features=list, balance="class")
    scale = Traits.of(methods.confidence).scale()
    streamed = choose_streaming(in_parts(scores, readable, 999), rows, scale, count=2000, seed=0, groups=groups)
    assert np.array_equal(streamed.reasons, known.reasons)


def test_choose_streaming__draws_by_the_seed_alike_from_everywhere(in_parts, rng):
    rows = 20_000
    scores = ImageScores(*(rng.random(rows, np.float32) for _ in range(2)), np.zeros(rows, np.int32))
    parts, scale = in_parts(scores, np.ones(rows, bool), 1000), Traits.of(methods.random).scale()
    first, again, other = (choose_streaming(parts, rows, scale, count=5000, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.reasons, again.reasons) and not np.array_equal(first.reasons, other.reasons)
    share = np.bincount(first.indices // 1000)
    assert len(first) == 5000 and 190 < share.min() <= share.max() < 310  # each has 250, with a deviation of 14


def test_choose_streaming__refuses_a_method_that_admits_nothing(in_parts, rng):
    scores = ImageScores(rng.random(50, np.float32), rng.random(50, np.float32), np.zeros(50, np.int32))
    parts, scale = in_parts(scores, np.ones(50, bool), 20), Scale(lambda scores, rng: scores.confidence * np.nan)
    with pytest.raises(RequestError, match=r"^the method admits none of 50 usable images$"):
        choose_streaming(parts, 50, scale, count=None, seed=0)


def test_choose_streaming__holds_a_byte_an_image(rng, monkeypatch):
    monkeypatch.setattr(streaming, "_COUNTERS", 16)
    confidence = rng.random(4096, np.float32)
    scale = Traits.of(methods.threshold).scale(gamma=0.7, draw="confidence")
    scores = ImageScores(confidence, confidence, (confidence * 10).astype(np.int32), confidence)

    def peak(parts):
        tracemalloc.start()
        try:
            readable = np.ones(4096, bool)
            choice = choose_streaming(
                lambda: ((scores, readable) for _ in range(parts)), 4096 * parts, scale, count=None, seed=0, groups=10
            )
            assert len(choice) == 2048 * parts
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(24) - peak(8) < 1.5 * 16 * 4096


def test_choice__gives_its_rows_piece_by_piece(rng, monkeypatch):
    monkeypatch.setattr("dfkd.select.choose._BLOCK", 64)
    rows = 1000
    scores = ImageScores(rng.random(rows, np.float32), rng.random(rows, np.float32), np.zeros(rows, np.int32))
    for count in (1, 700, 1000):
        choice = choose(scores, np.ones(rows, bool), methods.confidence, count=count, seed=0, features=list)
        for size in (1, 63, 64, 1000):
            pieces = [choice.some(start, start + size) for start in range(0, len(choice), size)]
            assert np.array_equal(np.concatenate(pieces), choice.indices)
        assert len(choice.some(count, count + 5)) == 0


def test_scale__of_a_method_of_ones_own_decides_too(in_parts):
    scale = Scale(lambda scores, rng: -abs(scores.confidence - 0.5))
    confidence = np.array([0.1, 0.55, 0.9, 0.4, 0.52], np.float32)
    scores = ImageScores(confidence, confidence, np.zeros(5, np.int32), confidence)
    choice = choose_streaming(in_parts(scores, np.ones(5, bool), 2), 5, scale, count=2, seed=0)
    assert choice.indices.tolist() == [1, 4]
    for wrong in (lambda scores, rng: scores.confidence[:1], lambda scores, rng: scores.confidence > 0.5):
        with pytest.raises(
            RequestError, match=r"the method's scale gives \w+\[\d\] for 2 images, not one number for each image"
        ):
            choose_streaming(in_parts(scores, np.ones(5, bool), 2), 5, Scale(wrong), count=2, seed=0)
    with pytest.raises(TooFew, match="count=6 is above the 5 images"):
        choose_streaming(in_parts(scores, np.ones(5, bool), 2), 5, scale, count=6, seed=0)
