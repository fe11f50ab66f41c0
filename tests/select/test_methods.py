import inspect
from dataclasses import replace

import numpy as np
import pytest

from dfkd.config import SelectConfig
from dfkd.config.option import options
from dfkd.select import methods
from dfkd.select.methods import ImageScores
from dfkd.system.errors import RequestError


@pytest.fixture
def scores(rng):
    p = rng.dirichlet([0.3] * 5, size=1000)
    entropy = -(p * np.log(np.maximum(p, 1e-30))).sum(axis=1) / np.log(5)
    return ImageScores(p.max(axis=1).astype(np.float32), entropy.astype(np.float32), p.argmax(axis=1))


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.73, 1.0])
def test_threshold_admits_the_share_gamma_of_the_most_confident(scores, rng, gamma):
    ranking = methods.threshold(scores, rng, gamma=gamma)
    out = np.setdiff1d(np.arange(1000), ranking.rows)
    assert len(ranking.rows) == round(1000 * gamma)
    assert scores.confidence[ranking.rows].min() == np.float32(ranking.threshold)
    assert len(out) == 0 or scores.confidence[out].max() < ranking.threshold


def test_threshold_falls_as_gamma_rises(scores, rng):
    thresholds = [methods.threshold(scores, rng, gamma=g).threshold for g in (0.2, 0.4, 0.6, 0.8)]
    assert thresholds == sorted(thresholds, reverse=True)
    assert len(set(thresholds)) == 4


def test_threshold_draws(scores, rng):
    by_entropy = methods.threshold(scores, rng, gamma=0.5, draw="entropy").rows
    assert (np.diff(scores.entropy[by_entropy]) <= 0).all()
    by_confidence = methods.threshold(scores, rng, gamma=0.5, draw="confidence").rows
    assert (np.diff(scores.confidence[by_confidence]) <= 0).all()
    at_random = methods.threshold(scores, rng, gamma=0.5, draw="random").rows
    assert set(at_random) == set(by_entropy) == set(by_confidence)
    assert list(at_random) != sorted(at_random)


def test_threshold_takes_neither_the_unsure_nor_the_nearly_one_hot(scores, rng):
    picked = methods.threshold(scores, rng, gamma=0.6, draw="entropy").rows[:300]
    assert scores.confidence[picked].min() > np.quantile(scores.confidence, 0.39)
    assert scores.confidence[picked].max() < np.quantile(scores.confidence, 0.95)


@pytest.mark.parametrize("gamma", [0.0, -0.1, 1.1, float("nan")])
def test_threshold_refuses_gamma(scores, rng, gamma):
    with pytest.raises(RequestError, match="gamma"):
        methods.threshold(scores, rng, gamma=gamma)


def test_gamma__help_says_the_methods_default():
    default = inspect.signature(methods.threshold).parameters["gamma"].default
    assert f"{default:g} for threshold" in options(SelectConfig)["gamma"].help


def test_equal_scores_admit_all_in_the_pools_order(rng):
    same = ImageScores(np.full(7, 0.5, np.float32), np.full(7, 0.5, np.float32), np.zeros(7, np.int64))
    assert methods.threshold(same, rng, gamma=0.3).rows.tolist() == list(range(7))


def test_baselines(scores, rng):
    assert (np.diff(scores.confidence[methods.confidence(scores, rng).rows]) <= 0).all()
    assert (np.diff(scores.entropy[methods.entropy(scores, rng).rows]) <= 0).all()
    drawn = methods.random(scores, np.random.default_rng(3)).rows
    assert sorted(drawn) == list(range(1000))
    assert drawn.tolist() == methods.random(scores, np.random.default_rng(3)).rows.tolist()
    assert drawn.tolist() != methods.random(scores, np.random.default_rng(4)).rows.tolist()


def test_statistics_ranks_the_nearest_first_and_leaves_out_what_has_no_distance(scores, rng):
    distance = rng.random(1000).astype(np.float32)
    distance[[3, 700]] = np.nan
    ranking = methods.statistics(replace(scores, distance=distance), rng)
    assert sorted(ranking.rows) == sorted({*range(1000)} - {3, 700}) and ranking.threshold is None
    assert (np.diff(distance[ranking.rows]) >= 0).all()
    both = methods.statistics(replace(scores, distance=distance), rng, weight=2.0).rows
    assert (np.diff((scores.confidence.astype(float) ** 2 / distance)[both]) <= 1e-6).all()


@pytest.mark.parametrize("distance", [None, np.full(1000, np.nan, np.float32)])
def test_statistics_needs_a_teacher_that_remembers_some(scores, rng, distance):
    with pytest.raises(RequestError, match="threshold needs none"):
        methods.statistics(replace(scores, distance=distance), rng)
    with pytest.raises(RequestError, match="weight"):
        methods.statistics(scores, rng, weight=-1.0)
