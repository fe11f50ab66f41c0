import numpy as np
import pyarrow.parquet as pq
import pytest

from dfkd.system.checked_parquet import Damaged, read_columns, write_columns


@pytest.fixture
def columns(rng):
    return {
        "score": np.array([0.5, np.nan, 1.0], np.float32),
        "logits": rng.normal(size=(3, 4)).astype(np.float16),
        "problem": np.array([None, "cannot be opened", None], dtype=object),
    }


def test_what_is_written_is_read(columns, tmp_path):
    write_columns(tmp_path / "x.parquet", columns)
    read = read_columns(tmp_path / "x.parquet", tuple(columns))
    for name, values in columns.items():
        assert read[name].dtype == values.dtype
        assert repr(read[name].tolist()) == repr(values.tolist())


def test_every_flipped_bit_is_seen_or_changes_nothing(columns, tmp_path):
    file = tmp_path / "x.parquet"
    write_columns(file, columns)
    good, expected = file.read_bytes(), repr(read_columns(file, tuple(columns)))
    seen = 0
    for bit in range(0, 8 * len(good), 61):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            assert repr(read_columns(file, tuple(columns))) == expected
        except Damaged:
            seen += 1
    assert seen > 50


def test_read_columns__what_is_missing_or_has_no_hash_is_damaged(columns, tmp_path):
    file = tmp_path / "x.parquet"
    with pytest.raises(Damaged):
        read_columns(file, ("score",))
    write_columns(file, columns)
    pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    with pytest.raises(Damaged, match="its logits is not what was written"):
        read_columns(file, ("logits",))
    with pytest.raises(Damaged):
        read_columns(file, ("features",))
