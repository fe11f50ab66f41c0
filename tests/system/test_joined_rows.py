import numpy as np
import pytest

from dfkd.system.joined_rows import JoinedRows


@pytest.mark.parametrize("lengths", [(3, 4), (5,), (0, 2, 0, 0, 3, 0), (1, 1, 1)])
def test_split__covers_every_row_once_and_leads_back_to_it(lengths, rng):
    sequences = [[f"{number}.{row}" for row in range(length)] for number, length in enumerate(lengths)]
    whole = np.array([item for sequence in sequences for item in sequence])
    rows = rng.permutation(np.repeat(np.arange(len(whole)), 2))
    joined = JoinedRows(lengths)
    assert len(joined) == len(whole)
    found = np.empty(len(rows), whole.dtype)
    numbers, seen = [], []
    for number, positions, local in joined.split(rows):
        numbers.append(number)
        seen += positions.tolist()
        found[positions] = [sequences[number][row] for row in local.tolist()]
    assert numbers == [number for number, length in enumerate(lengths) if length]
    assert sorted(seen) == list(range(len(rows)))
    assert (found == whole[rows]).all()


def test_split__leaves_out_sequences_without_rows_and_keeps_the_order_of_the_others():
    parts = [(number, positions.tolist(), local.tolist()) for number, positions, local in _split((2, 3, 4), [8, 0, 7])]
    assert parts == [(0, [1], [0]), (2, [0, 2], [3, 2])]
    assert not [*_split((2, 3), [])] and not [*_split((), [])]
    assert len(JoinedRows(())) == 0


def test_split__counts_rows_beyond_32_bits():
    ((number, _, local),) = _split((2**32, 2**32), [2**32 + 5])
    assert (number, local.tolist()) == (1, [5])


def _split(lengths, rows):
    return JoinedRows(lengths).split(np.array(rows, dtype=np.int64))
