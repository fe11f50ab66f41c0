import datasets
import numpy as np
import pyarrow as pa
import pytest

from dfkd.formats.manifest import write_manifest
from dfkd.formats.shards import Rows, Shards, write_shards
from dfkd.system.errors import RequestError


def rows(rng, count, start=0, size=5, channels=3):
    return Rows(
        image=rng.integers(0, 256, (count, size, size, channels), dtype=np.uint8),
        source=[f"pool.npz#{start + i}" for i in range(count)],
        prediction=rng.integers(0, 4, count),
        confidence=rng.random(count),
        entropy=rng.random(count),
        logits=rng.normal(size=(count, 4)).astype(np.float16),
        kept_classes=rng.random((count, 4)) < 0.5,
    )


@pytest.fixture
def written(rng, tmp_path, manifest_of):
    parts = [rows(rng, 7), rows(rng, 7, 7), rows(rng, 3, 14)]
    files = write_shards(tmp_path / "s", parts, "0123456789abcdef")
    write_manifest(tmp_path / "s", manifest_of(files, 5, 4))
    return tmp_path / "s", parts


def test_what_is_written_is_read(written, rng):
    folder, parts = written
    shards = Shards(folder)
    assert len(shards) == 17
    images = np.concatenate([p.image for p in parts])
    order = rng.permutation(17)
    assert np.array_equal(shards.pixels(order), images[order])
    assert np.array_equal(shards.pixels(np.array([16, 16, 0])), images[[16, 16, 0]])
    for name in ("prediction", "logits", "kept_classes"):
        assert np.array_equal(shards.column(name), np.concatenate([getattr(p, name) for p in parts]))
    np.testing.assert_allclose(shards.column("entropy"), np.concatenate([p.entropy for p in parts]), rtol=1e-6)
    assert shards.column("source").tolist() == [f"pool.npz#{i}" for i in range(17)]
    some = np.array([16, 0, 5, 0])
    for name in ("source", "logits", "kept_classes", "confidence"):
        assert np.array_equal(shards.column(name, some), shards.column(name)[some])


def test_datasets_opens_it_and_sees_the_same(written):
    folder, parts = written
    opened = datasets.load_from_disk(str(folder))
    assert opened.features["image"] == datasets.Array3D(shape=(3, 5, 5), dtype="uint8")
    row = opened.with_format("numpy")[9]
    assert np.array_equal(row["image"], parts[1].image[2].transpose(2, 0, 1))
    assert np.array_equal(row["logits"], parts[1].logits[2])


def test_pixels_are_a_view_of_the_file_and_not_a_copy(rng, tmp_path, manifest_of):
    files = write_shards(tmp_path / "s", [rows(rng, 600, size=32), rows(rng, 600, 600, size=32)], "0123456789abcdef")
    write_manifest(tmp_path / "s", manifest_of(files, 32, 4))
    before = pa.total_allocated_bytes()
    shards = Shards(tmp_path / "s")
    shards.pixels(np.array([3, 700]))
    assert pa.total_allocated_bytes() - before < 600 * 32 * 32 * 3 / 10


def test_an_incomplete_or_damaged_folder_is_named(written, tmp_path):
    folder, _ = written
    Shards(folder).verify()
    shard = folder / "data-00001.arrow"
    good = shard.read_bytes()
    shard.write_bytes(good[:-200] + bytes([good[-200] ^ 1]) + good[-199:])
    with pytest.raises(RequestError, match=r"data-00001.arrow is damaged"):
        Shards(folder).verify()
    shard.write_bytes(good[: len(good) // 2])
    with pytest.raises(RequestError, match=r"data-00001.arrow"):
        Shards(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(RequestError, match="cannot be read"):
        Shards(folder)
    (folder / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(RequestError, match="has format 99; this version of dfkd reads"):
        Shards(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(RequestError, match="is not a selection"):
        Shards(folder)
