import io

import numpy as np
import pytest
import torch

from dfkd.system.errors import RequestError
from dfkd.training.hardest import HardestOrder

IMAGES, BATCH = 20, 6


def values_of(rows, step):
    """What a student would say of these rows after a step; some of them ever harder."""
    return torch.from_numpy((rows * 7919 % 13 + np.random.default_rng(step).random(len(rows))).astype(np.float32))


def learn(order, steps, first=0):
    """The batches of a few steps, each told to the order."""
    batches = []
    for step in range(first, first + steps):
        batches.append(order.rows(step * BATCH, BATCH))
        order.seen(batches[-1], values_of(batches[-1], step))
    return batches


def test_every_round_is_of_the_images_with_the_largest_values_when_last_seen():
    batches = learn(HardestOrder(IMAGES, 0.4, seed=3), 12)
    rows = np.concatenate(batches).tolist()
    assert sorted(rows[:IMAGES]) == list(range(IMAGES))
    for start in range(IMAGES, 12 * BATCH - 8, 8):
        asked = start // BATCH  # the batch in which the round begins is asked for before it has been seen
        latest = {}
        for step in range(asked):
            latest |= dict(zip(batches[step].tolist(), values_of(batches[step], step).tolist(), strict=True))
        unseen = [row for row in range(IMAGES) if row not in latest]
        hardest = sorted(latest, key=latest.get, reverse=True)
        assert set(rows[start : start + 8]) == set((unseen + hardest)[:8])
    rounds = [rows[start : start + 8] for start in range(IMAGES, 12 * BATCH - 8, 8)]
    assert any(set(a) == set(b) and a != b for a in rounds for b in rounds)  # shuffled anew


def test_what_was_left_out_returns_when_the_others_are_learnt():
    order = HardestOrder(4, 0.5, seed=0)
    easy = order.rows(0, 4)[:2]
    order.seen(np.arange(4), torch.tensor([2.0 if row in easy else 3.0 for row in range(4)]))
    hard = order.rows(4, 2)
    assert set(hard) == set(range(4)) - set(easy)
    order.seen(hard, torch.tensor([1.0, 1.0]))
    assert set(order.rows(6, 2)) == set(easy)


def test_a_row_that_is_seen_twice_counts_as_it_was_seen_last():
    order = HardestOrder(3, 0.34, seed=0)
    order.rows(0, 3)
    order.seen(np.array([0, 1, 2, 1]), torch.tensor([5.0, 9.0, 6.0, 1.0]))
    assert order.rows(3, 1).tolist() == [2]


def test_values_are_read_when_a_round_is_drawn_and_not_before():
    order = HardestOrder(4, 0.5, seed=0)
    values = torch.tensor([1.0, 1.0, 2.0, 2.0])
    order.rows(0, 4)
    order.seen(np.arange(4), values)
    values.neg_()  # as a device may still be computing them
    assert set(order.rows(4, 2)) == {0, 1}


@pytest.mark.parametrize("steps", [2, 4, 7])
def test_it_goes_on_from_its_state(steps):
    whole = learn(HardestOrder(IMAGES, 0.4, seed=1), 12)
    first = HardestOrder(IMAGES, 0.4, seed=1)
    learn(first, steps)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    learn(first, 3, steps)  # which changes nothing of what was saved
    buffer.seek(0)
    second = HardestOrder(IMAGES, 0.4, seed=1)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert np.array_equal(learn(second, 12 - steps, steps), whole[steps:])
    other = np.concatenate(learn(HardestOrder(IMAGES, 0.4, seed=2), 12))
    assert other.tolist() != np.concatenate(whole).tolist()


def test_its_state_is_finite_before_all_is_seen():
    state = HardestOrder(IMAGES, 0.4, seed=1).state_dict()
    assert all(torch.isfinite(value).all() for value in state.values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_shares_that_are_none(share):
    with pytest.raises(RequestError, match=f"^share={share:g} is not above 0 and at most 1"):
        HardestOrder(IMAGES, share, seed=0)
