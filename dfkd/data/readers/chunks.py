"""A table's columns, a piece at a time: the record batches of an Arrow file, the row groups of a Parquet file."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from dfkd.system.remote import RemoteFile

if TYPE_CHECKING:
    import pyarrow as pa

_MOST_BYTES = 1 << 30
"""Of a row group that are read at once: Arrow's arrays of bytes end at 2 GB, and all of it lies in memory."""


@runtime_checkable
class Chunks(Protocol):
    """A table in pieces that can be loaded one at a time."""

    @property
    def schema(self) -> "pa.Schema":
        """Names and types of the columns."""

    @property
    def lengths(self) -> Sequence[int]:
        """Rows of each piece."""

    def load(self, column: str, index: int) -> "pa.Array":
        """One column of piece `index`."""

    def whole(self, column: str) -> "pa.ChunkedArray":
        """One column of all pieces."""


class ArrowChunks:
    """The record batches of a memory-mapped table."""

    def __init__(self, table: "pa.Table") -> None:
        self.schema, self._table = table.schema, table
        self.lengths = [len(chunk) for chunk in table.column(0).chunks] if table.num_columns else []
        self._checked: set[tuple[str, int]] = set()

    def load(self, column: str, index: int) -> "pa.Array":
        """A view of the file's memory. Its offsets are checked once: Arrow itself follows them wherever they lead."""
        chunk = self._table.column(column).chunk(index)
        if (column, index) not in self._checked:
            chunk.validate(full=True)
            self._checked.add((column, index))
        return chunk

    def whole(self, column: str) -> "pa.ChunkedArray":
        """A view of the file's memory."""
        self._table.column(column).validate(full=True)
        return self._table.column(column)


class ParquetChunks:
    """The row groups of a Parquet file, large ones in pieces of as many rows.

    The last two are kept, so that a batch across a border reads neither twice.
    """

    def __init__(self, path: Path | RemoteFile) -> None:
        self._path = path
        self._metadata: Any = None
        with self._file() as file:
            self.schema, self._metadata = file.schema_arrow, file.metadata
        self._pieces = [piece for i in range(self._metadata.num_row_groups) for piece in self._cut(i)]
        self.lengths = [rows for _, _, _, rows in self._pieces]
        self._kept: OrderedDict[tuple[str, int], pa.Array] = OrderedDict()
        self._lock = Lock()
        self._open: tuple[str, int, Iterator[pa.RecordBatch]] | None = None

    def load(self, column: str, index: int) -> "pa.Array":
        """Read, decompress and keep one piece of a column."""
        with self._lock:
            if (column, index) not in self._kept:
                if isinstance(self._path, Path):
                    self._path.stat()  # of a file that has vanished, pyarrow's own error does not name it
                if len(self._kept) == 2:
                    self._kept.popitem(last=False)
                array = self._read(column, index)
                array.validate(full=True)
                self._kept[column, index] = array
            self._kept.move_to_end((column, index))
            return self._kept[column, index]

    def _file(self) -> Any:
        import pyarrow.parquet as pq

        if isinstance(self._path, Path):
            return pq.ParquetFile(self._path, metadata=self._metadata)
        return pq.ParquetFile(self._path.open(ahead=0), metadata=self._metadata, pre_buffer=True)

    def _cut(self, group: int) -> Iterator[tuple[int, int, int, int]]:
        """The pieces of a row group: its index, the piece's number, the rows of all pieces but the last, its own."""
        about = self._metadata.row_group(group)
        rows, columns = about.num_rows, range(about.num_columns)
        most = max((about.column(i).total_uncompressed_size for i in columns), default=0)
        if most <= _MOST_BYTES or rows < 2:
            yield group, 0, rows, rows
            return
        step = max(1, rows * _MOST_BYTES // most)
        yield from ((group, number, step, min(step, rows - at)) for number, at in enumerate(range(0, rows, step)))

    def _read(self, column: str, index: int) -> "pa.Array":
        """One piece; those of a large row group are read one after the other, as a pool is."""
        group, number, step, _ = self._pieces[index]
        if step == self._metadata.row_group(group).num_rows:
            with self._file() as file:
                return file.read_row_group(group, columns=[column]).column(column).combine_chunks()
        if number and self._open is not None and self._open[:2] == (column, index):
            batches = self._open[2]
        else:
            batches = self._file().iter_batches(
                batch_size=step, row_groups=[group], columns=[column], use_threads=False
            )
            batches = islice(batches, number, None)
        self._open = None
        batch = next(batches, None)
        if batch is None:
            raise ValueError("its last rows are missing")
        self._open = (column, index + 1, batches)
        return batch.column(0)

    def whole(self, column: str) -> "pa.ChunkedArray":
        """Read one column."""
        with self._file() as file:
            return file.read(columns=[column]).column(column)
