"""Columns of a table in pieces: the record batches of an Arrow file, or the row groups of a Parquet file."""

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
"""Largest number of bytes of a row group that are read at once. The bytes are held in memory, and Arrow allows 2 GB."""


@runtime_checkable
class Chunks(Protocol):
    """Table in pieces, which are loaded one at a time."""

    @property
    def schema(self) -> "pa.Schema":
        """Names and types of the columns."""

    @property
    def lengths(self) -> Sequence[int]:
        """Number of rows of each piece."""

    def load(self, column: str, index: int) -> "pa.Array":
        """Return one column of piece `index`."""

    def whole(self, column: str) -> "pa.ChunkedArray":
        """Return one column of all pieces."""


class ArrowChunks:
    """Record batches of a memory-mapped table."""

    def __init__(self, table: "pa.Table") -> None:
        self.schema, self._table = table.schema, table
        self.lengths = [len(chunk) for chunk in table.column(0).chunks] if table.num_columns else []
        self._checked: set[tuple[str, int]] = set()

    def load(self, column: str, index: int) -> "pa.Array":
        """Return a view of the file's memory for one column of piece `index`.

        The offsets are validated once, because Arrow follows them without a bounds check.
        """
        chunk = self._table.column(column).chunk(index)
        if (column, index) not in self._checked:
            chunk.validate(full=True)
            self._checked.add((column, index))
        return chunk

    def whole(self, column: str) -> "pa.ChunkedArray":
        """Return a view of the file's memory for one column."""
        self._table.column(column).validate(full=True)
        return self._table.column(column)


class ParquetChunks:
    """Row groups of a Parquet file. Large row groups are cut into pieces of equally many rows.

    The last two pieces are kept, so that a batch across a boundary reads no piece twice.
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
        """Return one column of piece `index`, read, decompressed and kept."""
        with self._lock:
            if (column, index) not in self._kept:
                if isinstance(self._path, Path):
                    self._path.stat()  # pyarrow's error for a missing file does not name the file
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
        """Yield the pieces of a row group.

        A piece is a tuple: the group's index, the piece's number, the rows of every piece but the last, the piece's
        rows.
        """
        about = self._metadata.row_group(group)
        rows, columns = about.num_rows, range(about.num_columns)
        most = max((about.column(i).total_uncompressed_size for i in columns), default=0)
        if most <= _MOST_BYTES or rows < 2:
            yield group, 0, rows, rows
            return
        step = max(1, rows * _MOST_BYTES // most)
        yield from ((group, number, step, min(step, rows - at)) for number, at in enumerate(range(0, rows, step)))

    def _read(self, column: str, index: int) -> "pa.Array":
        """Return one piece. Pieces of a large row group are read in sequence, because a pool is."""
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
        """Return one column, read from the file."""
        with self._file() as file:
            return file.read(columns=[column]).column(column)
