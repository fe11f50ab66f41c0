import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfkd.data import open_pool
from dfkd.system.errors import RequestError


def test_sorted_with_labels(folder: Path, patches: np.ndarray) -> None:
    (folder / "a" / "notes.txt").write_text("no image")
    (folder / "a" / "._00.png").write_bytes(b"a file that macOS leaves in archives")
    (folder / "b0").mkdir()  # a class without images keeps its number
    pool = open_pool([str(folder)], image_size=16, channels=3)
    every = np.arange(len(pool))
    assert pool.origins(every) == [f"photos/{'abc'[i // 4]}/{i:02d}.png" for i in range(12)]
    assert np.array_equal(pool.images(every).pixels, patches)
    assert pool.labels().tolist() == [0] * 4 + [1] * 4 + [3] * 4
    assert pool.files(np.array([5])) == [(folder / "b" / "05.png").read_bytes()]


def test_no_labels_where_an_image_lies_on_top(folder: Path) -> None:
    (folder / "a" / "00.png").rename(folder / "zero.PNG")
    pool = open_pool([str(folder)], image_size=16, channels=3)
    assert pool.origins(np.array([11])) == ["photos/zero.PNG"]
    with pytest.raises(RequestError, match=r"'zero.PNG' lies in no class subfolder"):
        pool.labels()


def test_links_are_followed_but_not_in_circles(folder: Path, tmp_path: Path) -> None:
    (folder / "a").rename(tmp_path / "elsewhere")
    (folder / "a").symlink_to(tmp_path / "elsewhere")
    (folder / "b" / "up").symlink_to(folder)
    (folder / "b" / "itself").symlink_to(folder / "b" / "itself")  # neither a file nor a folder can be behind it
    assert len(open_pool([str(folder)], image_size=16, channels=3)) == 12


def test_unreadable_files_are_problems(folder: Path, patches: np.ndarray) -> None:
    broken = folder / "a" / "01.png"
    broken.write_bytes(broken.read_bytes()[:150])
    (folder / "a" / "02.png").write_text("not an image")
    (folder / "a" / "03.png").unlink()
    (folder / "a" / "03.png").symlink_to("nowhere")
    (folder / "b" / "04.png").write_bytes(b"")
    pool = open_pool([str(folder)], image_size=16, channels=3)
    (folder / "c" / "11.png").unlink()
    images = pool.images(np.arange(12)[::-1])
    assert list(images.problems) == [0, 7, 8, 9, 10]
    assert images.problems[7] == "is an empty file"
    assert images.problems[0].startswith("cannot be opened")
    assert images.problems[9] == "is not a PNG, JPEG, WebP, BMP, GIF, TIFF or PPM image"
    assert "truncated" in images.problems[10]
    assert not images.pixels[[0, 7, 8, 9, 10]].any()
    assert np.array_equal(images.pixels[11], patches[0])
    with pytest.raises(RequestError, match=r"photos/c/11\.png.* cannot be opened"):
        pool.files(np.array([11]))


def test_identity_follows_names_sizes_and_times(folder: Path, tmp_path: Path) -> None:
    def identity(path: Path) -> list[dict]:
        return open_pool([str(path)], image_size=16, channels=3).identity

    before = identity(folder)
    assert str(tmp_path) not in str(before)
    assert identity(folder) == before
    os.utime(folder / "a" / "00.png", ns=(1, 1))
    touched = identity(folder)
    assert touched != before
    (folder / "a" / "00.png").rename(folder / "a" / "000.png")
    assert identity(folder) != touched


def test_without_images(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no images"):
        open_pool([str(tmp_path)], image_size=16, channels=3)
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.HEIC").touch()
    with pytest.raises(RequestError, match=r"no images \(.*\), but 1 \.heic, 1 \.mp4; convert \.heic to JPEG$"):
        open_pool([str(tmp_path)], image_size=16, channels=3)
    (tmp_path / "x.tar").touch()
    with pytest.raises(RequestError, match=r"for its .tar files write '.*/\*.tar'"):
        open_pool([str(tmp_path)], image_size=16, channels=3)


@pytest.mark.parametrize(
    ("folders", "classes", "names"),
    [
        (("bee", "ant", "cat"), 3, ("ant", "bee", "cat")),
        (("bee", "ant", "cat"), 2, ()),
        (("0", "1", "2"), 3, ()),
    ],
)
def test_class_names__are_the_folders_where_these_count_in_sorted_order(tmp_path, folders, classes, names):
    for folder in folders:
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "a.png")
    assert open_pool([str(tmp_path)], image_size=8, channels=3).class_names(classes) == names
