"""Opening of tables with images: Parquet and Arrow files, and folders of `datasets.load_from_disk`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfkd.data.readers.chunks import ArrowChunks, ParquetChunks
from dfkd.data.readers.reader import file_state
from dfkd.data.readers.table import TableReader
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.system.files import hash_of
from dfkd.system.remote import RemoteFile

if TYPE_CHECKING:
    import pyarrow as pa


def open_parquet(path: Path | RemoteFile) -> TableReader:
    """Return a reader of a Parquet file. Raises: RequestError if the file is not an intact Parquet file."""
    import pyarrow as pa

    try:
        return TableReader(str(path), ParquetChunks(path), {"format": "parquet", **file_state(path)})
    except (pa.ArrowException, UnicodeError) as error:
        raise RequestError(f"{str(path)!r} is not a whole Parquet file ({error}); fetch or write it again") from error


def open_arrow(path: Path) -> TableReader:
    """Return a reader of a memory-mapped Arrow file in stream or file format.

    Raises: RequestError if the file is not an intact Arrow file.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            opened = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
            table = opened.read_all()
        table.validate()
        return TableReader(str(path), ArrowChunks(table), {"format": "arrow", **file_state(path)})
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise RequestError(f"{str(path)!r} is not a whole Arrow file ({error}); fetch or write it again") from error


def is_saved(path: Path) -> bool:
    """Return whether `datasets.load_from_disk` would open the folder."""
    if (path / "dataset_dict.json").is_file():
        return True
    beside = (path / "dataset_info.json").is_file() or any(path.glob("*.arrow"))  # others write a `state.json`, too
    return beside and (path / "state.json").is_file()


def open_saved(path: Path) -> TableReader:
    """Return a reader of a folder that `datasets.load_from_disk` opens: a selection or another data set.

    Raises: RequestError if the folder is damaged or holds several splits.
    """
    import datasets

    try:
        dataset = datasets.load_from_disk(str(path))
    except Exception as error:  # a foreign library reads a foreign format, and does not declare its exceptions
        raise RequestError(f"{str(path)!r} is not a whole data set ({error}); write it again") from error
    if isinstance(dataset, datasets.DatasetDict):
        splits = ", ".join(f"'{path / split}'" for split in dataset)
        raise RequestError(f"{str(path)!r} holds several splits; give one: {splits}")
    identity: dict[str, Any] = {"format": "shards"}
    manifest = path / "manifest.json"
    try:
        known: Any = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {"fingerprint": None}
        fingerprint = known["fingerprint"]
        unfiltered = "kernel" in known.get("filter", {}) and known["image"]["encoded"]
        bits = (known.get("image") or {}).get("bits")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RequestError(f"{str(manifest)!r} is not a manifest with a fingerprint; select again") from error
    if unfiltered:
        say(f"{path}: the files of this selection are read as they came, without the filter that it was made with")
    if bits is not None:
        say(f"{path}: the files of this selection are read as they came; it was made with --bits {bits}")
    if fingerprint is None:
        files = [Path(file["filename"]) for file in dataset.cache_files]
        identity["files"] = [[file.name, file_state(file)] for file in files]
    else:
        identity["fingerprint"] = hash_of(fingerprint)
    return TableReader(str(path), ArrowChunks(arrow_table(dataset)), identity)


def arrow_table(dataset: Any) -> "pa.Table":
    """Return the memory-mapped table of a `datasets.Dataset`."""
    if dataset._indices is not None:  # rows selected or shuffled, with no public name for it
        dataset = dataset.flatten_indices()
    return dataset.data.table
