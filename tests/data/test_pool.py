import io
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfkd.data import open_pool
from dfkd.system.errors import RequestError


@pytest.fixture
def arrays(tmp_path: Path, patches: np.ndarray) -> list[str]:
    """Two files of the same name with the patches, and their negatives."""
    for folder, images in (("one", patches), ("two", 255 - patches)):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "pool.npz", images=images, labels=np.arange(12))
    return [str(tmp_path / folder / "pool.npz") for folder in ("one", "two")]


def read_ahead_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "dfkd-read-ahead"]


def test_several_data_are_one_after_the_other(arrays: list[str], folder: Path, patches: np.ndarray) -> None:
    pool = open_pool([arrays[0], str(folder), arrays[1]], image_size=16, channels=3)
    order = np.array([35, 0, 12, 23, 24, 11])
    both = np.concatenate([patches, patches, 255 - patches])
    assert len(pool) == 36
    assert np.array_equal(pool.images(order).pixels, both[order])
    assert pool.origins(order) == [
        "pool.npz~2#11", "pool.npz#0", "photos/a/00.png", "photos/c/11.png", "pool.npz~2#0", "pool.npz#11",
    ]  # fmt: skip
    assert len(set(pool.origins(np.arange(36)))) == 36
    assert np.array_equal(pool.labels(), [*range(12), *np.arange(12) // 4, *range(12)])
    assert [one["name"] for one in pool.identity] == ["pool.npz", "photos", "pool.npz"]
    files = pool.files(order)
    assert files[2] == (folder / "a" / "00.png").read_bytes()
    assert all(
        np.array_equal(np.asarray(Image.open(io.BytesIO(f))), both[i]) for i, f in zip(order, files, strict=True)
    )
    for outside in (-1, 36):
        with pytest.raises(IndexError):
            pool.images(np.array([outside]))
    assert len(pool.images(np.array([], np.int64)).pixels) == 0


def test_above_64_pixels_files_are_kept(arrays: list[str], folder: Path) -> None:
    def encoded(specs: list[str], size: int) -> bool:
        return open_pool(specs, image_size=size, channels=3).encoded

    assert not encoded([str(folder)], 64)
    assert encoded([str(folder)], 65)
    assert encoded([arrays[0], str(folder)], 224)
    assert encoded(arrays, 224)
    assert not encoded(arrays, 64)


@pytest.mark.parametrize("size", [5, 24, 100])
def test_batches_are_the_images_in_order(arrays: list[str], folder: Path, size: int) -> None:
    pool = open_pool([arrays[0], str(folder)], image_size=20, channels=1)
    batches = list(pool.batches(size))
    assert np.array_equal(np.concatenate([indices for indices, _ in batches]), np.arange(24))
    pixels = np.concatenate([images.pixels for _, images in batches])
    assert np.array_equal(pixels, pool.images(np.arange(24)).pixels)
    part = list(pool.batches(size, 3, 17))
    assert np.array_equal(np.concatenate([indices for indices, _ in part]), np.arange(3, 17))
    assert list(pool.batches(size, 24)) == []
    assert read_ahead_threads() == []


def test_a_thread_for_every_size_of_image(tmp_path: Path, photo: np.ndarray, encode: Callable) -> None:
    (tmp_path / "large").mkdir()
    crops = [photo[i : i + 100, 10 * i : 10 * i + 100] for i in range(30)]
    for i, crop in enumerate(crops):
        (tmp_path / "large" / f"{i:02d}.png").write_bytes(encode(crop))
    for workers in (1, 3):
        pool = open_pool([str(tmp_path / "large")], image_size=100, channels=3, workers=workers)
        assert np.array_equal(pool.images(np.arange(30)).pixels, np.stack(crops))


def test_errors_reach_the_consumer_and_the_thread_ends(arrays: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pool = open_pool(arrays, image_size=16, channels=3)
    whole = pool.images

    def failing(indices: np.ndarray) -> object:
        if indices[0] >= 8:
            raise OSError("the disk went away")
        return whole(indices)

    monkeypatch.setattr(pool, "images", failing)
    seen = []
    with pytest.raises(OSError, match="the disk went away"):
        for indices, _ in pool.batches(4):
            seen.append(indices[0])
    assert seen == [0, 4]
    assert read_ahead_threads() == []


def test_leaving_early_ends_the_thread_and_reads_little(arrays: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pool = open_pool(arrays, image_size=16, channels=3)
    whole, read = pool.images, []
    monkeypatch.setattr(pool, "images", lambda indices: (read.append(indices[0]), whole(indices))[1])
    batches = pool.batches(1)
    assert next(batches)[0].tolist() == [0]
    batches.close()
    assert read_ahead_threads() == []
    assert len(read) <= 3  # the one that was taken, and two ahead


def test_conversions_are_said_once_for_each_data(arrays: list[str], folder: Path, capsys) -> None:
    pool = open_pool([*arrays, str(folder)], image_size=8, channels=1)
    for _ in range(2):
        list(pool.batches(5))
    lines = capsys.readouterr().err.splitlines()
    assert sorted(lines) == sorted(
        [
            *["pool.npz: 16x16 images are resized to 8x8 (antialiased bilinear)"] * 2,
            "photos: 16x16 images, and those of other sizes, are resized to 8x8 (antialiased bilinear)",
            *["pool.npz: color is converted to gray (ITU-R 601 luma)"] * 2,
            "photos: color is converted to gray (ITU-R 601 luma)",
        ]
    )


def test_the_pools_own_size(arrays: list[str], folder: Path, tmp_path: Path, patches: np.ndarray) -> None:
    assert open_pool(arrays, image_size=None, channels=3).image_size == 16
    np.savez(tmp_path / "wide.npz", images=patches[:, :8])
    np.savez(tmp_path / "small.npz", images=patches[:, :8, :8])
    for specs, pattern in (
        ([arrays[0], str(folder)], "'photos' holds encoded images, of any size; give --image-size N"),
        ([str(tmp_path / "wide.npz")], r"no square size in common: 16x8 \(wide.npz\); give --image-size N"),
        ([arrays[0], str(tmp_path / "small.npz")], r"16x16 \(pool.npz\), 8x8 \(small.npz\)"),
    ):
        with pytest.raises(RequestError, match=pattern):
            open_pool(specs, image_size=None, channels=3)


def test_bad_requests(arrays: list[str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for spec, pattern in (
        (str(tmp_path / "one" / "pol.npz"), r"there is no file or folder '.*pol\.npz'; did you mean 'pool\.npz'\?"),
        (str(tmp_path / "on" / "pool.npz"), r"has no 'on'; did you mean 'one'\?"),
        (str(tmp_path / "zebra"), "there is no file or folder '.*zebra'$"),
        (str(tmp_path / "notes.txt"), "is in no known format: a folder of images"),
        ("https://example.org/x.tar", "DATA is a folder of images"),
        (str(tmp_path / "x-{5..2}.tar"), "write the smaller number first"),
        ("", "there is no file or folder ''"),
    ):
        with pytest.raises(RequestError, match=pattern):
            open_pool([spec], image_size=16, channels=3)
    with pytest.raises(RequestError, match="no DATA is given"):
        open_pool([], image_size=16, channels=3)
    with pytest.raises(RequestError, match="2 channels: images have 1"):
        open_pool(arrays, image_size=16, channels=2)
    with pytest.raises(RequestError, match="--image-size 0"):
        open_pool(arrays, image_size=0, channels=3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif"])
def test_first_damaged__is_a_file_that_is_cut_off_or_no_image(tmp_path: Path, patches: np.ndarray, suffix: str) -> None:
    for row, pixels in enumerate(patches):
        Image.fromarray(pixels).save(tmp_path / f"{row:02d}.{suffix}")
    pool = open_pool([str(tmp_path)], image_size=16, channels=3)
    assert pool.first_damaged() is None
    whole = (tmp_path / f"07.{suffix}").read_bytes()
    for content in (whole[: 2 * len(whole) // 3], b"<html>", b""):
        (tmp_path / f"07.{suffix}").write_bytes(content)
        origin, why = pool.first_damaged() or ("", "")
        assert origin.endswith(f"/07.{suffix}") and why
    assert pool.images(np.array([7])).problems  # the same that is found on reading


def test_first_damaged__decodes_no_intact_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a file was decoded")

    pool = open_pool([str(folder)], image_size=16, channels=3)
    monkeypatch.setattr("dfkd.data.pool.decode", refuse)
    assert pool.first_damaged() is None
