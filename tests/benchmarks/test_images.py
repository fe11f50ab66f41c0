"""The images of the comparisons on CIFAR-10, from data sets of a few images."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dfkd.data import open_pool


@pytest.fixture
def module(script, monkeypatch):
    """The script with 6 training and 3 test images of CIFAR-10, of which it splits off 2 and 1."""
    module = script("images")
    sets = {
        train: SimpleNamespace(
            data=np.arange(n, dtype=np.uint8).repeat(32 * 32 * 3).reshape(n, 32, 32, 3), targets=[*range(n)]
        )
        for train, n in ((True, 6), (False, 3))
    }
    monkeypatch.setattr(module, "CIFAR10", lambda root, train, download: sets[train])
    monkeypatch.setattr(module, "TRAIN", 4)
    monkeypatch.setattr(module, "TEST", 1)
    return module


def test_cifar10__is_split_in_its_own_order(module, tmp_path):
    module.main([str(tmp_path / "data")])
    for name, numbers in {"train40k": [0, 1, 2, 3], "heldout10k": [4, 5], "test1k": [0]}.items():
        pool = open_pool([str(tmp_path / "data" / f"cifar10_{name}.npz")], image_size=32, channels=3)
        assert pool.labels().tolist() == numbers
        assert pool.images(np.arange(len(pool))).pixels[:, 0, 0, 0].tolist() == numbers


def test_pool__has_every_photo_with_the_class_of_its_folder(module, tmp_path):
    rng = np.random.default_rng(0)
    for k, name in enumerate(("n02", "n10", "n11")):
        folder = tmp_path / "tiny" / "train" / name / "images"
        folder.mkdir(parents=True)
        for number in range(5):
            pixels = rng.integers(0, 8, (64, 64, 3)) + 60 * k + 10 * number
            image = Image.fromarray(pixels.astype(np.uint8)).convert("L" if number == 0 else "RGB")
            image.save(folder / f"{name}_{number}.JPEG", quality=95)
    module.main([str(tmp_path / "data"), "--tiny-imagenet", str(tmp_path / "tiny")])
    with np.load(tmp_path / "data" / module.POOL) as pool, np.load(tmp_path / "data" / module.CLASSES) as classes:
        images, of = pool["images"], classes["wnid_index"]
    assert images.shape == (15, 32, 32, 3) and images.dtype == np.uint8 and np.bincount(of).tolist() == [5, 5, 5]
    brightness = images.mean(axis=(1, 2, 3)) - 3.5 - 60 * of  # of its class: 0, 10, ..., 40
    for k in range(3):
        assert np.allclose(np.sort(brightness[of == k]), [0, 10, 20, 30, 40], atol=1.5)
    assert (np.diff(of.astype(int)) < 0).any(), "the photos are shuffled"
    before = (tmp_path / "data" / module.POOL).stat().st_mtime_ns
    module.main([str(tmp_path / "data"), "--tiny-imagenet", str(tmp_path / "tiny")])
    assert (tmp_path / "data" / module.POOL).stat().st_mtime_ns == before, "existing files are kept"


def test_folder_without_photos_is_named(module, tmp_path):
    (tmp_path / "tiny" / "train").mkdir(parents=True)
    with pytest.raises(SystemExit, match="tiny has no train/CLASS/images"):
        module.main([str(tmp_path / "data"), "--tiny-imagenet", str(tmp_path / "tiny")])
