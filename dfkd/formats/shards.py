"""Writing, verifying and opening of selections: Arrow shards, which `datasets.load_from_disk` opens, beside a manifest.

Images of up to 64 pixels a side are raw uint8 of one shape, in one record batch per shard. The flattened storage of a
shard is then a view of the file in memory, without decoding or copying. The layout is [channels, height, width],
because Arrow keeps four bytes of offset for every innermost list. With channels last, offsets would take more space
than pixels. Larger images are stored as encoded files.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from dfkd.data.images.decode import BatchDecoder, Decoded, decode, processors
from dfkd.data.images.frame import Window
from dfkd.data.pool import PixelFilter
from dfkd.formats.manifest import HINT, MANIFEST, ImageShape, ShardFile, read_manifest
from dfkd.system.checked_parquet import to_numpy
from dfkd.system.checksums import check_file, check_size, entry
from dfkd.system.errors import RequestError, reason
from dfkd.system.files import make_folder, replacing, write_json
from dfkd.system.joined_rows import JoinedRows

ROWS_PER_SHARD = 8_192
BYTES_PER_SHARD = 256 * 2**20
"""Limit for shards of encoded files, whose sizes differ. Arrow counts the bytes of a column in 32 bits."""
HASHED_WHEN_OPENED = 256 * 2**20
"""Largest total size in bytes of shards that are hashed whenever they are opened, which takes a fifth of a second.

For larger selections, opening checks sizes, and `dfkd inspect --verify` checks hashes. Reading a hundred million images
takes minutes.
"""


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a selection, as columns."""

    image: UInt8[np.ndarray, "rows height width channels"] | list[bytes]
    """Pixels, or encoded files."""
    source: list[str]
    prediction: Int[np.ndarray, " rows"]
    confidence: Float[np.ndarray, " rows"]
    entropy: Float[np.ndarray, " rows"]
    logits: Float[np.ndarray, "rows classes"]
    kept_classes: Bool[np.ndarray, "rows classes"]


def write_shards(
    folder: Path,
    shards: Iterable[Rows],
    fingerprint: str,
    done: Sequence[ShardFile] = (),
    written: Callable[[Mapping[str, Any]], None] = lambda file: None,
) -> list[dict[str, Any]]:
    """Write one Arrow file per element of `shards`, and the two files with which `datasets` opens the folder.

    `done` are the first files, written by an earlier call. `written` is called with the entry of every new file.
    Returns: the manifest's list of files, each with name, rows, bytes and sha256. The folder is complete only after
    `write_manifest`.
    """
    from datasets import DatasetInfo

    make_folder(folder)
    files = [file.describe() for file in done]
    features = _features_of(folder / files[0]["name"]) if files else None
    for number, rows in enumerate(shards, len(files)):
        features = features or _features(rows)
        path = folder / f"data-{number:05d}.arrow"
        _write_arrow(path, rows, features)
        files.append({"name": path.name, "rows": len(rows.source), **entry(path)})
        written(files[-1])
    DatasetInfo(features=features).write_to_directory(str(folder))
    state: dict[str, Any] = {
        "_data_files": [{"filename": file["name"]} for file in files],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_json(folder / "state.json", state)
    return files


class Shards:
    """Complete selection, memory-mapped: images by row number, and columns."""

    def __init__(self, folder: Path) -> None:
        """Open `folder`. Raises: RequestError for an incomplete selection or a changed shard."""
        self.folder = folder
        self.manifest = read_manifest(folder)
        sizes = [check_size(folder / file.name, file, HINT) for file in self.manifest.files]
        if sum(sizes) <= HASHED_WHEN_OPENED:
            self.verify()
        self._tables = [_open_arrow(folder / file.name, file.rows) for file in self.manifest.files]
        self._rows = JoinedRows(map(len, self._tables))
        self.encoded = self.manifest.image.encoded
        self._threads = ThreadPoolExecutor(processors()) if self.encoded else None
        self._filter = self._read_filter()
        self._frame = self.manifest.content.preprocess.frame
        self.decoder: BatchDecoder | None = None
        try:
            self._raw = [] if self.encoded else [_pixels(table, self.manifest.image) for table in self._tables]
            classes = {self._check_columns(table) for table in self._tables}
        except (ValueError, KeyError, AttributeError, TypeError) as error:  # nearly all of Arrow's are ValueErrors
            raise RequestError(
                f"{folder} holds other columns than its {MANIFEST} says ({error}); make it again"
            ) from None
        if classes - {self.manifest.classes}:
            raise RequestError(f"{folder} has logits of other classes than its {MANIFEST} says; select again")

    def decoded_by(self, decoder: BatchDecoder) -> "Shards":
        """Return a copy of the selection whose JPEG files are decoded on a GPU."""
        shards = copy.copy(self)
        shards.decoder = decoder
        return shards

    def __len__(self) -> int:
        return len(self._rows)

    def pixels(
        self, rows: Int[np.ndarray, " batch"], windows: Sequence[Window] | None = None
    ) -> UInt8[np.ndarray, "batch height width channels"]:
        """Return the images of some rows: copied from the shards, or decoded with one thread per core.

        `windows`, if given, has one window per row, which is decoded of an encoded image.
        """
        image = self.manifest.image
        out = np.empty((len(rows), image.size, image.size, image.channels), dtype=np.uint8)
        for shard, where, local in self._rows.split(rows):
            if self._threads is not None:
                files = self._tables[shard]["image"].chunk(0).field("bytes").take(local).to_pylist()
                parts: Sequence[Window | None] = [None] * len(where) if windows is None else [windows[i] for i in where]
                done: Sequence[Decoded | None] = [None] * len(where)
                if self.decoder is not None:
                    done = self.decoder(files, image.size, image.channels, self._frame, parts)
                decoded = self._threads.map(self._decoded, files, parts, done)
                for i, pixels in zip(where, decoded, strict=True):
                    out[i] = pixels
            else:
                out[where] = self._raw[shard][local].transpose(0, 2, 3, 1)
        return out if self._filter is None else self._filter(out)

    def _read_filter(self) -> PixelFilter | None:
        """Return the filter of encoded images. Raw images were filtered before they were stored."""
        if not self.encoded or "kernel" not in self.manifest.filter:
            return None
        from dfkd.data.images.filter import read_filter  # imports torch

        return read_filter(self.manifest.filter, self.manifest.image.channels)

    def _decoded(
        self, file: bytes, window: Window | None, done: Decoded | None
    ) -> UInt8[np.ndarray, "height width channels"]:
        image = self.manifest.image
        found = done or decode(file, image.size, image.channels, image.bits, self._frame, window)
        return found.pixels

    def column(self, name: str, rows: Int[np.ndarray, " some"] | None = None) -> np.ndarray:
        """Return a column of numbers or strings [rows, ...]: the whole column, or `rows` of it in their order."""
        for table in self._tables:
            table[name].validate(full=True)  # check offsets, which Arrow follows without a bounds check
        if rows is None:
            return np.concatenate([to_numpy(table[name].combine_chunks()) for table in self._tables])
        parts = [*self._rows.split(rows)]
        values = [to_numpy(self._tables[shard][name].take(local).combine_chunks()) for shard, _, local in parts]
        return np.concatenate(values)[np.argsort(np.concatenate([where for _, where, _ in parts]))]

    def _check_columns(self, table: Any) -> int:
        """Return the number of classes.

        Raises: ValueError, KeyError, AttributeError or TypeError if the columns differ from the format.
        """
        import pyarrow as pa

        classes = table.schema.field("logits").type.list_size
        kinds = {"source": pa.string(), "prediction": pa.int32(), "confidence": pa.float32(), "entropy": pa.float32()}
        kinds |= {"logits": pa.list_(pa.float16(), classes), "kept_classes": pa.list_(pa.bool_(), classes)}
        for name, kind in kinds.items():
            column = table[name]
            if column.type != kind or column.null_count:
                raise ValueError(f"column {name} is {column.type} with {column.null_count} empty rows, not {kind}")
        if self.encoded:
            table["image"].validate(full=True)
            if table.schema.field("image").type.field("bytes").type != pa.binary():
                raise ValueError("column image holds no files")
        return classes

    def verify(self) -> None:
        """Read every shard again. Raises: RequestError, which names the first changed shard."""
        for file in self.manifest.files:
            check_file(self.folder / file.name, file, HINT)


def _features(rows: Rows) -> Any:
    from datasets import Array3D, Features, Image, Sequence, Value

    classes = rows.logits.shape[1]
    image: Any = Image()
    if isinstance(rows.image, np.ndarray):
        _, height, width, channels = rows.image.shape
        image = Array3D(shape=(channels, height, width), dtype="uint8")
    return Features(
        {
            "image": image,
            "source": Value("string"),
            "prediction": Value("int32"),
            "confidence": Value("float32"),
            "entropy": Value("float32"),
            "logits": Sequence(Value("float16"), length=classes),
            "kept_classes": Sequence(Value("bool"), length=classes),
        }
    )


def _features_of(shard: Path) -> Any:
    """Return the features of a shard that was written earlier."""
    import pyarrow as pa
    from datasets import Features

    with pa.memory_map(str(shard)) as source:
        return Features.from_arrow_schema(pa.ipc.open_stream(source).schema)


def _write_arrow(path: Path, rows: Rows, features: Any) -> None:
    import pyarrow as pa

    schema = features.arrow_schema

    def matrix(values: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])

    if isinstance(rows.image, list):
        paths = pa.nulls(len(rows.image), pa.string())
        image = pa.StructArray.from_arrays([pa.array(rows.image, pa.binary()), paths], names=["bytes", "path"])
    else:
        planes = np.ascontiguousarray(rows.image.transpose(0, 3, 1, 2))
        image = pa.array(planes.ravel())
        for size in reversed(planes.shape[1:]):
            image = pa.ListArray.from_arrays(pa.array(np.arange(0, len(image) + 1, size, dtype=np.int32)), image)
        image = pa.ExtensionArray.from_storage(schema.field("image").type, image)
    columns = [
        image,
        pa.array(rows.source, pa.string()),
        pa.array(rows.prediction.astype(np.int32)),
        pa.array(rows.confidence.astype(np.float32)),
        pa.array(rows.entropy.astype(np.float32)),
        matrix(rows.logits.astype(np.float16)),
        matrix(rows.kept_classes),
    ]
    with replacing(path) as partial, pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def _open_arrow(path: Path, rows: int) -> Any:
    import pyarrow as pa

    try:
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise RequestError(f"{path} cannot be read ({reason(error)}){HINT}") from None
    if len(table) != rows:
        raise RequestError(f"{path} has {len(table)} rows, the manifest says {rows}{HINT}")
    return table


def _pixels(table: Any, image: ImageShape) -> UInt8[np.ndarray, "rows channels height width"]:
    """Return the images of a shard as a view of its file, by flattening three levels of lists."""
    import pyarrow as pa

    # chunk(0) is the shard's one record batch; combine_chunks() would copy the data
    flat = table["image"].chunk(0)
    # Without `datasets`, whose import takes seconds, pyarrow does not know the extension type and returns its storage.
    flat = getattr(flat, "storage", flat)
    for _ in range(3):
        flat.validate()  # flatten() follows these offsets; a damaged one would lead out of the file
        flat = flat.flatten()
    flat.validate()
    if flat.type != pa.uint8() or flat.null_count:
        raise ValueError(f"column image is of {flat.type} with {flat.null_count} empty values, not uint8")
    # to_numpy() would import pandas
    pixels = np.frombuffer(flat.buffers()[1], np.uint8, len(flat), flat.offset)
    return pixels.reshape(-1, image.channels, image.size, image.size)
