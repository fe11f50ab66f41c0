import pytest

from dfkd.system.spacing import evenly_spaced


@pytest.mark.parametrize(
    ("total", "count", "rows"),
    [(9, 3, [0, 4, 8]), (5, 9, [0, 1, 2, 3, 4]), (7, 1, [0]), (1, 4, [0]), (0, 3, []), (4, 0, [])],
)
def test_evenly_spaced__has_the_ends_and_no_row_twice(total, count, rows):
    assert evenly_spaced(total, count).tolist() == rows
