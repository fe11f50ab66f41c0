import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest

from dfkd.data import open_pool
from dfkd.system.errors import RequestError

EVERY = np.arange(12)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("layout", ["nhwc", "nchw", "flat", "fortran"])
def test_layouts_give_the_same_pixels(tmp_path: Path, patches: np.ndarray, layout: str, write) -> None:
    planes = patches.transpose(0, 3, 1, 2)
    stored = {"nhwc": patches, "nchw": planes, "flat": planes.reshape(12, -1), "fortran": np.asfortranarray(patches)}
    write(tmp_path / "pool.npz", data=stored[layout])
    pool = open_pool([str(tmp_path / "pool.npz")], image_size=None, channels=3)
    assert (pool.image_size, len(pool), pool.encoded) == (16, 12, False)
    order = np.array([7, 0, 11, 7])
    assert np.array_equal(pool.images(order).pixels, patches[order])
    assert pool.origins(order) == ["pool.npz#7", "pool.npz#0", "pool.npz#11", "pool.npz#7"]


@pytest.mark.parametrize("order", ["C", "F"])
def test_pages_that_were_read_do_not_stay(tmp_path: Path, order: str, rng) -> None:
    images = rng.integers(0, 256, (3000, 32, 32, 3), dtype=np.uint8)
    path = tmp_path / "pool.npz"
    np.savez(path, images=np.asarray(images, order=order))
    pool = open_pool([str(path)], image_size=None, channels=3)
    some = np.sort(rng.permutation(3000)[:1500])  # more than are copied at once
    for indices in (np.arange(100), some, rng.permutation(3000)[:50]):
        assert np.array_equal(pool.images(indices).pixels, images[indices])
        assert resident(path) < 1000  # of 9,216: what the system maps around the rows read last


def resident(path: Path) -> int:
    """Kilobytes of a mapped file that are in this process's memory."""
    if not Path("/proc/self/smaps").exists():
        pytest.skip("only Linux says what is resident")
    sections = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    found = [int(re.search(r"^Rss: +(\d+) kB", s, re.MULTILINE)[1]) for s in sections if str(path) in s]
    assert found, "the file is not mapped"
    return sum(found)


def test_gray(tmp_path: Path, patches: np.ndarray) -> None:
    np.savez(tmp_path / "gray.npz", x=patches[..., 1])
    path = str(tmp_path / "gray.npz")
    assert np.array_equal(open_pool([path], image_size=None, channels=1).images(EVERY).pixels, patches[..., 1:2])
    assert np.array_equal(open_pool([path], image_size=None, channels=3).images(EVERY).pixels, patches[..., [1, 1, 1]])


def test_labels_are_shifted_in_the_flat_layout_alone(tmp_path: Path, patches: np.ndarray) -> None:
    ones = np.arange(12) % 3 + 1
    for name, images, labels in (
        ("flat.npz", patches.reshape(12, -1), ones),
        ("flat0.npz", patches.reshape(12, -1), ones - 1),
        ("nhwc.npz", patches, ones),
    ):
        np.savez(tmp_path / name, images=images, y=labels.astype(np.uint8))
    labels = {n: open_pool([str(tmp_path / n)], image_size=16, channels=3).labels() for n in os.listdir(tmp_path)}
    assert np.array_equal(labels["flat.npz"], ones - 1)
    assert np.array_equal(labels["flat0.npz"], ones - 1)
    assert np.array_equal(labels["nhwc.npz"], ones)
    assert labels["flat.npz"].dtype == np.int64


def test_compressed_leaves_nothing_behind(tmp_path: Path, patches: np.ndarray, monkeypatch, capsys) -> None:
    spill = tmp_path / "spill"
    spill.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spill))
    np.savez_compressed(tmp_path / "pool.npz", images=patches)
    pool = open_pool([str(tmp_path / "pool.npz")], image_size=None, channels=3)
    assert np.array_equal(pool.images(EVERY).pixels, patches)
    assert list(spill.iterdir()) == []
    assert "is compressed: unpacking" in capsys.readouterr().err


def test_identity_is_content(tmp_path: Path, patches: np.ndarray) -> None:
    for folder, images in (("one", patches), ("two", patches), ("three", 255 - patches)):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "pool.npz", images=images)
    os.utime(tmp_path / "two" / "pool.npz", (1, 1))
    one, two, three = (
        open_pool([str(tmp_path / f / "pool.npz")], image_size=None, channels=3).identity
        for f in ("one", "two", "three")
    )
    assert one == two != three
    assert str(tmp_path) not in str(one)


def test_bad_files(tmp_path: Path, patches: np.ndarray) -> None:
    def refused(name: str, pattern: str, **arrays: np.ndarray) -> None:
        np.savez(tmp_path / name, **arrays)
        with pytest.raises(RequestError, match=pattern):
            open_pool([str(tmp_path / name)], image_size=16, channels=3)

    refused("a.npz", "float64, not uint8", images=patches / 255)
    refused(
        "b.npz", "has no array 'images' or 'x' or 'data'; it has 'labels' or 'pictures'", pictures=patches, labels=EVERY
    )
    refused("c.npz", "object, not uint8", images=np.array([{}, {}], dtype=object))
    refused("d.npz", re.escape("one image, [5, 7, 9], is not [h,w,c]"), images=np.zeros((12, 5, 7, 9), np.uint8))
    refused("e.npz", "holds no images", images=patches[:0])
    refused("f.npz", re.escape("one image, [100], is not"), images=np.zeros((12, 100), np.uint8))
    for suffix, write in (("stored", np.savez), ("compressed", np.savez_compressed)):
        path = tmp_path / f"{suffix}.npz"
        write(path, images=patches)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(RequestError, match="is not a whole"):
            open_pool([str(path)], image_size=16, channels=3)
    path.write_bytes(whole[:400] + bytes(b ^ 255 for b in whole[400:500]) + whole[500:])
    with pytest.raises(RequestError, match="is not a whole"):
        open_pool([str(path)], image_size=16, channels=3)


def test_bad_labels(tmp_path: Path, patches: np.ndarray) -> None:
    for name, arrays, pattern in (
        ("none.npz", {}, "has no labels 'labels' or 'y'"),
        ("float.npz", {"labels": EVERY / 2}, "not 12 integers"),
        ("short.npz", {"labels": EVERY[:5]}, "not 12 integers"),
        ("hidden.npz", {"labels": EVERY - 1}, "images without a label"),
    ):
        np.savez(tmp_path / name, images=patches, **arrays)
        with pytest.raises(RequestError, match=pattern):
            open_pool([str(tmp_path / name)], image_size=None, channels=3).labels()
