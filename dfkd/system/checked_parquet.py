"""Parquet files of the cache, with the SHA-256 of each column's values."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dfkd.system.errors import first_line
from dfkd.system.files import replacing

if TYPE_CHECKING:
    import pyarrow as pa

Columns = dict[str, np.ndarray]
"""Arrays by column name, each with one entry per row.

An array holds numbers [rows], lists of numbers [rows, width], or strings and None [rows] of dtype object.
"""


class Damaged(Exception):
    """Error for a cache file that is missing, unreadable or changed."""


def write_columns(file: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Write columns of equal length to a Parquet file. The hashes are stored in the schema's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {name: _array(values) for name, values in columns.items()}
    metadata = {f"sha256:{name}": _hash(values) for name, values in columns.items()}
    with replacing(file) as partial:
        pq.write_table(pa.table(arrays).replace_schema_metadata(metadata), partial)


def read_columns(file: Path, names: Sequence[str]) -> Columns:
    """Return the named columns of a Parquet file after a check of their hashes.

    Raises: Damaged if the file is missing or unreadable, or if a column's values differ from those that were written.
    """
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as stored:
            table = stored.read(columns=list(names), use_threads=False)
        columns = {name: _values(table[name].combine_chunks()) for name in names}
        written = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        changed = [name for name, v in columns.items() if written.get(f"sha256:{name}") != _hash(v)]
    except Exception as error:  # pyarrow can raise any exception for a damaged file
        raise Damaged(f"{file} is damaged ({first_line(error)})") from None
    if changed:
        raise Damaged(f"{file} is damaged: its {changed[0]} is not what was written")
    return columns


def _array(values: np.ndarray) -> "pa.Array":
    import pyarrow as pa

    if values.dtype == object:
        return pa.array(values.tolist(), pa.string())
    flat = pa.array(values.ravel())
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _values(array: "pa.Array") -> np.ndarray:
    import pyarrow as pa

    if pa.types.is_string(array.type):
        # fast path: this column holds the images' problems, and nearly always every row is None
        rows = array.to_pylist() if array.null_count < len(array) else [None] * len(array)
        return np.array(rows, dtype=object)
    return to_numpy(array)


def to_numpy(array: "pa.Array") -> np.ndarray:
    """Return an array of numbers or strings [rows], or of lists of one length [rows, width]."""
    import pyarrow as pa

    if pa.types.is_fixed_size_list(array.type):
        return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)
    return array.to_numpy(zero_copy_only=False)


def _hash(values: np.ndarray) -> str:
    if values.dtype == object:
        return hashlib.sha256(json.dumps(values.tolist()).encode()).hexdigest()
    header = f"{values.dtype}{list(values.shape)}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(values).tobytes()).hexdigest()
