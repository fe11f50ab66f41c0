import numpy as np
import pytest

from dfkd.generators.quota import Quota, missing
from dfkd.system.errors import RequestError


def test_every_class_is_filled_to_the_mean():
    assert missing(np.array([5, 1, 0, 2]), None).tolist() == [0, 1, 2, 0]
    assert missing(np.array([3, 1, 0, 0]), None).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("held", [[5, 1, 0, 2], [0, 0, 0, 0], [7, 7, 7, 7], [1, 9, 1, 1]])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 21])
def test_with_a_count_the_lowest_classes_are_raised_together(held, count):
    held = np.array(held)
    lacks = missing(held, count)
    assert lacks.sum() == count and lacks.min() >= 0
    raised, level = held + lacks, (held + lacks)[lacks > 0]
    assert level.max() - level.min() <= 1, "those that get images end up even"
    assert raised.min() >= level.max() - 1, "and none that gets none is lower"


def test_an_even_selection_is_refused():
    with pytest.raises(RequestError, match="even already; give the number of images to add with --count"):
        missing(np.array([4, 4, 4]), None)


def test_a_quota_of_any_class_takes_the_first():
    quota = Quota(3)
    assert quota.take(np.array([1, 1, 0, 2]), np.array([True, False, True, True])).tolist() == [0, 2, 3]
    assert quota.full and quota.lacking() == {}
    assert quota.take(np.array([1]), np.array([True])).tolist() == []


def test_a_quota_of_classes_takes_what_is_wanted():
    quota = Quota.of(np.array([0, 2, 1]))
    assert quota.count == 3 and not quota.full
    assert quota.take(np.array([0, 1, 2, 2, 1]), np.array([True, True, False, True, True])).tolist() == [1, 3, 4]
    assert quota.full
    half = Quota.of(np.array([3, 2]))
    half.take(np.array([0, 1]), np.array([True, True]))
    assert half.lacking() == {0: 2, 1: 1}
