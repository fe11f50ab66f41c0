import json
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfkd.data import open_pool
from dfkd.data.pool import Pool
from dfkd.data.readers.chunks import ArrowChunks
from dfkd.data.readers.table import TableReader
from dfkd.system.errors import RequestError

ORDER = np.array([9, 0, 5, 4, 11, 0])


def pool_of(path: Path, image_size: int | None = 16) -> Pool:
    return open_pool([str(path)], image_size=image_size, channels=3)


@pytest.mark.parametrize("struct", [True, False])
def test_parquet_with_encoded_images(tmp_path: Path, patches: np.ndarray, encode: Callable, struct: bool) -> None:
    files = [encode(patch) for patch in patches]
    cells = [{"bytes": file, "path": f"{i}.png"} for i, file in enumerate(files)] if struct else files
    table = pa.table({"text": ["a"] * 12, "IMG": cells, "fine_label": list(range(12))})
    pq.write_table(table, tmp_path / "set.parquet", row_group_size=5)
    pool = pool_of(tmp_path / "set.parquet")
    assert np.array_equal(pool.images(ORDER).pixels, patches[ORDER])
    assert pool.files(ORDER) == [files[i] for i in ORDER]
    assert pool.origins(ORDER[:2]) == ["set.parquet#9", "set.parquet#0"]
    assert pool.labels().tolist() == list(range(12))
    with pytest.raises(RequestError, match="holds encoded images, of any size; give --image-size N"):
        pool_of(tmp_path / "set.parquet", None)


def test_rows_without_an_image(tmp_path: Path, patches: np.ndarray, encode: Callable) -> None:
    """A table from elsewhere does not choose which files of this machine are opened."""
    (tmp_path / "a.png").write_bytes(encode(patches[1]))
    cells = [{"bytes": encode(patches[0]), "path": None}, None, {"bytes": None, "path": str(tmp_path / "a.png")}]
    pq.write_table(pa.table({"image": cells}), tmp_path / "set.parquet")
    images = pool_of(tmp_path / "set.parquet").images(np.arange(3))
    assert images.problems == {1: "there is no image in this row", 2: "there is only a path in this row, and no image"}
    assert np.array_equal(images.pixels[0], patches[0])


def test_rows_with_paths_are_followed_into_their_own_folder(tmp_path: Path, patches: np.ndarray, encode: Callable):
    (tmp_path / "own").mkdir()
    for name, patch in (("own/a.png", patches[0]), ("private.png", patches[1])):
        (tmp_path / name).write_bytes(encode(patch))
    paths = [tmp_path / "own" / name for name in ("a.png", "gone.png", "../private.png")]
    cells = [{"bytes": None, "path": str(path)} for path in paths]
    table = ArrowChunks(pa.table({"image": cells}))
    inside, gone, outside = TableReader("t", table, {}, [tmp_path / "own"]).read(np.arange(3))
    assert inside == encode(patches[0])
    assert str(gone) == "its file cannot be opened: No such file or directory"
    assert str(outside) == "there is only a path in this row, and no image"


@pytest.mark.parametrize("kind", ["lists", "large", "fixed", "planes", "tensor", "flat"])
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_raw_columns(tmp_path: Path, patches: np.ndarray, kind: str, suffix: str) -> None:
    planes = patches.transpose(0, 3, 1, 2)
    lists = pa.list_(pa.list_(pa.list_(pa.uint8())))
    image: pa.Array = {
        "lists": lambda: pa.array(patches.tolist(), lists),
        "large": lambda: pa.array(patches.tolist(), pa.large_list(pa.list_(pa.list_(pa.uint8(), 3)))),
        "fixed": lambda: pa.array(patches.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8(), 3), 16), 16)),
        "planes": lambda: pa.array(planes.tolist(), lists),
        "tensor": lambda: pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(patches)),
        "flat": lambda: pa.array(planes.reshape(12, -1).tolist(), pa.list_(pa.uint8())),
    }[kind]()
    table = pa.table({"image": image, "label": np.arange(12)})
    path = tmp_path / f"raw{suffix}"
    if suffix == ".parquet":
        pq.write_table(table, path, row_group_size=5)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            for i in range(0, 12, 5):
                writer.write_table(table.slice(i, 5))  # the last two batches begin inside a longer array
    pool = pool_of(path, None)
    assert pool.image_size == 16
    assert np.array_equal(pool.images(ORDER).pixels, patches[ORDER])
    assert pool.labels().tolist() == list(range(12))


def test_arrow_file_format(tmp_path: Path, patches: np.ndarray) -> None:
    table = pa.table({"image": pa.array(patches.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8()))))})
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert np.array_equal(pool_of(tmp_path / "x.arrow", None).images(ORDER).pixels, patches[ORDER])


def save(patches: np.ndarray, path: Path) -> None:
    features = datasets.Features({"image": datasets.Array3D((16, 16, 3), "uint8"), "source": datasets.Value("string")})
    columns = {"image": list(patches), "source": ["s"] * len(patches)}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(path, num_shards=2)


def test_a_shard_folder_of_our_own(tmp_path: Path, patches: np.ndarray) -> None:
    for name in ("one", "two"):
        save(patches, tmp_path / name)
    pool = pool_of(tmp_path / "one", None)
    assert np.array_equal(pool.images(ORDER).pixels, patches[ORDER])
    assert pool.origins(ORDER[:1]) == ["one#9"]
    with pytest.raises(RequestError, match=r"has no label column .* its columns are image, source"):
        pool.labels()

    def content(name: str) -> dict:
        return {k: v for k, v in pool_of(tmp_path / name).identity[0].items() if k != "name"}

    assert content("one") != content("two")  # told by the times of their files
    for name in ("one", "two"):
        (tmp_path / name / "manifest.json").write_text(json.dumps({"fingerprint": {"seed": 0}}))
    assert content("one") == content("two")
    single = next((tmp_path / "one").glob("data-00000*.arrow"))
    assert np.array_equal(pool_of(single, None).images(np.arange(6)).pixels, patches[:6])


def test_a_folder_with_encoded_images_and_splits(tmp_path: Path, folder: Path, patches: np.ndarray) -> None:
    files = [str(path) for path in sorted(folder.rglob("*.png"))]
    encoded = datasets.Dataset.from_dict({"image": files, "label": list(range(12))})
    encoded = encoded.cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": encoded, "test": encoded}).save_to_disk(tmp_path / "both")
    with pytest.raises(RequestError, match=r"holds several splits; give one: '.*both/train', '.*both/test'"):
        pool_of(tmp_path / "both")
    pool = pool_of(tmp_path / "both" / "train")
    assert np.array_equal(pool.images(ORDER).pixels, patches[ORDER])
    assert pool.labels().tolist() == list(range(12))


def test_bad_tables(tmp_path: Path, patches: np.ndarray) -> None:
    def refused(pattern: str, **columns: object) -> None:
        pq.write_table(pa.table(columns), tmp_path / "bad.parquet")
        with pytest.raises(RequestError, match=pattern):
            pool_of(tmp_path / "bad.parquet").images(np.arange(1))

    refused("has no image column .* its columns are photo, label", photo=[b"x"], label=[1])
    refused("'image' of .* is list<.*int64.*>, not images", image=[[1, 2, 3]])
    refused("'image' of .* is string, not images", image=["a.png"])
    refused("holds no images: it has no rows", image=pa.array([], pa.binary()))
    ragged = [patches[0].tolist(), patches[1, :8].tolist(), patches[2].tolist() + patches[2, :8].tolist()]
    refused("raw images of several shapes", image=pa.array(ragged, pa.list_(pa.list_(pa.list_(pa.uint8())))))
    lists = pa.array([patches[0].tolist(), None], pa.list_(pa.list_(pa.list_(pa.uint8()))))
    refused("or none in some rows", image=lists)
    pq.write_table(pa.table({"image": [b"x"], "label": ["cat"]}), tmp_path / "bad.parquet")
    with pytest.raises(RequestError, match=r"column 'label' holds words \('cat', ...\); --classes FILE names"):
        pool_of(tmp_path / "bad.parquet").labels()
    for name in ("bad.parquet", "bad.arrow"):
        (tmp_path / name).write_bytes(b"PAR1 and then nothing that fits")
        with pytest.raises(RequestError, match="is not a whole"):
            pool_of(tmp_path / name)
    save(patches, tmp_path / "cut")
    next((tmp_path / "cut").glob("data-00001*.arrow")).unlink()
    with pytest.raises(RequestError, match="is not a whole data set"):
        pool_of(tmp_path / "cut")
