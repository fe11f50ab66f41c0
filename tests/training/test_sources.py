import numpy as np
import pytest
import torch

from dfkd.formats.shards import Shards
from dfkd.training.hardest import HardestOrder
from dfkd.training.sampling import ShuffledOrder
from dfkd.training.sources import Batch, MixedSource, NotFollowing, Source
from dfkd.training.stored import Resident, ShardSource


class Numbered(Shards):
    """Rows that hold their own number; stands for an opened selection."""

    def __init__(self, start, count, encoded=False):
        self.numbers, self.encoded = np.arange(start, start + count), encoded

    def __len__(self):
        return len(self.numbers)

    def pixels(self, rows, windows=None):
        return np.broadcast_to(self.numbers[rows, None, None, None], (len(rows), 2, 2, 1)).astype(np.uint8)


def no_student(*_):
    raise AssertionError("stored images ask no student")


def drawn(source, *counts):
    return [source.sample(count).pixels[:, 0, 0, 0].tolist() for count in counts]


def source(seed=0, encoded=False):
    return ShardSource([Numbered(0, 7, encoded), Numbered(7, 5, encoded)], ShuffledOrder(12, seed))


def test_every_epoch_is_a_permutation_of_all_and_every_batch_is_full():
    assert isinstance(source(), Source)
    flat = [number for batch in drawn(source(), *[5] * 12) for number in batch]
    epochs = [flat[i : i + 12] for i in range(0, 60, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_a_batch_larger_than_the_set_takes_more_than_one_epoch():
    batch = drawn(source(), 30)[0]
    assert sorted(batch[:12]) == sorted(batch[12:24]) == list(range(12))
    assert len(set(batch[24:])) == 6


def test_the_state_is_the_position_and_the_seed_decides_the_order():
    whole = drawn(source(), 5, 5, 5, 5)
    first = source()
    assert drawn(first, 5, 5) == whole[:2]
    second = source()
    second.load_state_dict(first.state_dict())
    assert drawn(second, 5, 5) == whole[2:]
    assert drawn(source(seed=1), 5, 5) != whole[:2]


def test_reading_ahead_changes_nothing():
    assert drawn(source(encoded=True), 5, 5, 3, 5) == drawn(source(), 5, 5, 3, 5)
    ahead = source(encoded=True)
    drawn(ahead, 5, 5)
    resumed = source(encoded=True)
    resumed.load_state_dict(ahead.state_dict())
    assert drawn(resumed, 5) == drawn(ahead, 5)


def test_in_a_mixture_what_was_read_ahead_is_used_though_the_share_of_a_batch_alternates():
    read = []

    class Counted(Numbered):
        def pixels(self, rows, windows=None):
            read.append(len(rows))
            return super().pixels(rows)

    def mixed(encoded):
        parts = [ShardSource([kind(0, 9, encoded)], ShuffledOrder(9, 0)) for kind in (Counted, Numbered)]
        return MixedSource(parts, [2.0, 1.0])

    plain = drawn(mixed(False), *[4] * 30)
    read.clear()
    assert drawn(mixed(True), *[4] * 30) == plain
    assert sum(read) <= 80 + 30 + 3, "one image a batch may be read for nothing, and the batch after the last"


def test_pixels_that_stay_on_the_device_are_read_once_and_are_the_same():
    asked = []

    class Counted(Numbered):
        def pixels(self, rows, windows=None):
            asked.extend((self.numbers[0] + rows).tolist())
            return super().pixels(rows)

    def kept(encoded):
        resident = Resident(12, 2, 1, torch.device("cpu"))
        return ShardSource([Counted(0, 7, encoded), Counted(7, 5, encoded)], ShuffledOrder(12, 0), resident)

    for encoded in (False, True):
        asked.clear()
        assert drawn(kept(encoded), 5, 5, 30, 5) == drawn(source(), 5, 5, 30, 5)
        assert sorted(asked) == [*range(12)]
    asked.clear()
    drawn(kept(False), 5)
    assert len(asked) == 5  # a training begins without reading what it does not need yet


def test_stored_images_do_not_follow_the_student():
    """An update asks the student nothing, moves nothing of it, and changes no later batch."""
    student, stored = torch.nn.Linear(1, 1), source()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    student.register_forward_hook(no_student)
    whole, updated = drawn(source(), 5, 5, 5), []
    for _ in range(3):
        assert stored.update(student) == {}
        updated += drawn(stored, 5)
    assert updated == whole
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def told(source, *counts):
    """The images drawn where the student finds large numbers hard."""
    drawn = []
    for count in counts:
        batch = source.sample(count)
        source.seen(batch.rows, batch.rows.float())
        drawn.append(batch.rows.tolist())
    return drawn


def test_an_order_that_follows_the_student_is_told_and_goes_on_from_its_state():
    assert not source().follows
    first, whole, encoded, resumed = (
        ShardSource([Numbered(0, 7, e), Numbered(7, 5, e)], HardestOrder(12, 0.25, seed=0))
        for e in (False, False, True, False)
    )
    assert whole.follows
    batches = told(whole, 8, 4, 3, 2, 4)
    assert sorted(batches[2]) == [9, 10, 11] and {*batches[3], *batches[4]} == {9, 10, 11}
    assert told(encoded, 8, 4, 3, 2, 4) == batches  # nothing is read ahead of what the student says
    told(first, 8, 4, 3, 2)
    resumed.load_state_dict(first.state_dict())
    assert told(resumed, 4) == batches[4:]


def test_a_mixture_has_its_shares_to_the_image():
    mixed = MixedSource([source(), source(seed=1)], [3.0, 1.0])
    assert isinstance(mixed, Source) and mixed.images == 24
    batches = [mixed.sample(6) for _ in range(20)]
    assert all(len(batch.pixels) == len(batch.rows) == 6 for batch in batches)
    shares = np.cumsum([(batch.rows >= 12).sum().item() for batch in batches])
    assert np.abs(shares - 6 * np.arange(1, 21) / 4).max() < 1
    for batch in batches:
        assert (batch.rows % 12).tolist() == batch.pixels[:, 0, 0, 0].tolist(), "the second source's rows come behind"


def test_a_mixture_goes_on_from_its_state():
    whole = drawn(MixedSource([source(), source(seed=1)], [2.0, 1.0]), 5, 4, 5, 3)
    first, second = (MixedSource([source(), source(seed=1)], [2.0, 1.0]) for _ in range(2))
    assert drawn(first, 5, 4) == whole[:2]
    second.load_state_dict(first.state_dict())
    assert drawn(second, 5, 3) == whole[2:]


def test_a_mixture_with_images_that_are_not_stored_has_no_rows():
    class Unstored(NotFollowing):
        images, teacher_forwards, generator_steps, taps = None, 7, 3, frozenset({"last"})

        def warm_up(self, student):
            return None

        def sample(self, count, share=None):
            return Batch(torch.full((count, 2, 2, 1), 99, dtype=torch.uint8), None)

        def update(self, student):
            return {"term": torch.tensor(1.0)}

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    mixed = MixedSource([source(), Unstored()], [1.0, 1.0])
    batch = mixed.sample(8)
    assert (
        mixed.images is None and batch.rows is None and (batch.pixels[4:] == 99).all() and (batch.pixels[:4] < 99).all()
    )
    assert (mixed.teacher_forwards, mixed.generator_steps, mixed.taps) == (7, 3, {"last"})
    assert mixed.update(no_student) == {"term": torch.tensor(1.0)}


@pytest.mark.parametrize(("weights", "size"), [((3.0, 2.0, 5.0), 1), ((1.0, 0.003, 2.0), 128)])
def test_a_mixture_takes_no_image_back_from_a_small_share(weights, size):
    def mixed():
        parts = [ShardSource([Numbered(9 * n, 9)], ShuffledOrder(9, n)) for n in range(len(weights))]
        return MixedSource(parts, weights)

    one, batches = mixed(), 200
    found = [one.sample(size).rows // 9 for _ in range(batches)]
    assert {len(rows) for rows in found} == {size}
    counts, seen = torch.zeros(len(weights)), 0
    for rows in found:
        counts, seen = counts + torch.bincount(rows, minlength=len(weights)), seen + size
        assert (counts - seen * torch.tensor(weights) / sum(weights)).abs().max() <= 2
    half, resumed = mixed(), mixed()
    for _ in range(7):  # the first of these mixtures takes fewer images than are due after batch 6
        half.sample(size)
    resumed.load_state_dict(half.state_dict())
    assert all(torch.equal(half.sample(size).rows, resumed.sample(size).rows) for _ in range(20))
