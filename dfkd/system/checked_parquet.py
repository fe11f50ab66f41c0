"""Columns of numbers in a Parquet file of the cache, each with the SHA-256 of its values."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dfkd.system.files import replacing

if TYPE_CHECKING:
    import pyarrow as pa

Columns = dict[str, np.ndarray]
"""By name: one number a row, a list of numbers a row (two dimensions), or text or None (of type object)."""


class Damaged(Exception):
    """The file is not what was written."""


def write_columns(file: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Write columns of one length; the hashes go into the schema's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {name: _array(values) for name, values in columns.items()}
    metadata = {f"sha256:{name}": _hash(values) for name, values in columns.items()}
    with replacing(file) as partial:
        pq.write_table(pa.table(arrays).replace_schema_metadata(metadata), partial)


def read_columns(file: Path, names: Sequence[str]) -> Columns:
    """Some columns of a file.

    Raises: Damaged where there is no such file, it cannot be read, or the values are not those that were written.
    """
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as stored:
            table = stored.read(columns=list(names), use_threads=False)
        columns = {name: _values(table[name].combine_chunks()) for name in names}
        written = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        changed = [name for name, v in columns.items() if written.get(f"sha256:{name}") != _hash(v)]
    except Exception as error:  # a damaged file can raise anything at all from the reader
        what = str(error).partition("\n")[0] or type(error).__name__
        raise Damaged(f"{file} is damaged ({what})") from None
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
        # nearly always every row is None: no image had a problem
        rows = array.to_pylist() if array.null_count < len(array) else [None] * len(array)
        return np.array(rows, dtype=object)
    if pa.types.is_fixed_size_list(array.type):
        return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)
    return array.to_numpy(zero_copy_only=False)


def _hash(values: np.ndarray) -> str:
    if values.dtype == object:
        return hashlib.sha256(json.dumps(values.tolist()).encode()).hexdigest()
    header = f"{values.dtype}{list(values.shape)}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(values).tobytes()).hexdigest()
