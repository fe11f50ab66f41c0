import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from dfkd.data import open_pool
from dfkd.data.own import data_of
from dfkd.data.readers.vision import VisionReader, data_folder, open_vision
from dfkd.system.errors import RequestError


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """MNIST's files, as its servers have them, with twelve and five images."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = {}
    for split, count in (("train", 12), ("t10k", 5)):
        images[split] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(
            struct.pack(">4i", 2051, count, 28, 28) + images[split].tobytes()
        )
        labels = np.arange(count, dtype=np.uint8) % 10
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
    monkeypatch.setenv("DFKD_DATA", str(tmp_path))
    return images


def test_raw_pixels_of_a_split(mnist: dict[str, np.ndarray], tmp_path: Path) -> None:
    pool = open_pool(["torchvision:MNIST:test"], image_size=None, channels=1)
    assert pool.image_size == 28
    assert np.array_equal(pool.images(np.arange(5)).pixels[..., 0], mnist["t10k"])
    assert pool.labels().tolist() == [0, 1, 2, 3, 4]
    assert pool.origins(np.array([2])) == ["torchvision:MNIST:test#2"]
    assert str(tmp_path) not in str(pool.identity)
    assert len(open_pool(["torchvision:mnist"], image_size=None, channels=1)) == 12


def test_images_that_come_decoded() -> None:
    fake = torchvision.datasets.FakeData(size=6, image_size=(3, 20, 20))
    reader = VisionReader("fake", fake)
    assert reader.shape is None
    items = reader.read(np.array([4, 1]))
    assert np.array_equal(np.asarray(items[0]), np.asarray(fake[4][0]))
    assert reader.labels().tolist() == [fake[i][1] for i in range(6)]
    pool = open_pool(["torchvision:FakeData"], image_size=224, channels=3)
    assert (len(pool), pool.encoded) == (1000, True)
    assert np.array_equal(pool.images(np.array([3])).pixels[0], np.asarray(torchvision.datasets.FakeData()[3][0]))
    assert pool.files(np.array([3]))[0].startswith(b"\x89PNG")


class Mine:
    """A data set of one's own, whose `data` is not what its items show."""

    def __init__(self, split: str = "a") -> None:
        self.data = np.zeros((4, 8, 8, 3), np.uint8)
        self.split = split

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if index == 2:
            raise OSError("gone")
        return self.data[index] + 1, 7


def test_items_count_where_data_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "mine", Mine, raising=False)
    name, reader = open_vision("torchvision:torchvision.datasets.mine:b")
    assert name.endswith(":b") and reader._dataset.split == "b"
    pool = open_pool(["torchvision:torchvision.datasets.mine"], image_size=8, channels=3)
    assert pool.images(np.arange(3)).problems == {
        0: "is a ndarray, not an image",
        1: "is a ndarray, not an image",
        2: "OSError: gone",
    }


class Later(Mine):
    """Shows what `data` holds only at its beginning."""

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.data[index] + (index > 1)), 7


def test_open_vision__reads_items_where_a_later_one_differs_from_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "later", Later, raising=False)
    pool = open_pool(["torchvision:torchvision.datasets.later"], image_size=8, channels=3)
    assert pool.images(np.arange(4)).pixels.max(axis=(1, 2, 3)).tolist() == [0, 0, 1, 1]


class Labeled:
    """A data set with `data` and `targets`, whose items have the labels of another function, or none."""

    def __init__(self, label: Callable[[int], Any] | None, targets: Any = None) -> None:
        self.data = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1).repeat(8, axis=1).repeat(8, axis=2)
        self.label, self.targets = label, [i % 3 for i in range(12)] if targets is None else targets
        self.read: list[int] = []

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        image = Image.fromarray(self.data[index, :, :, 0])
        return image if self.label is None else (image, self.label(index))


@pytest.mark.parametrize(
    ("label", "targets", "expected"),
    [
        (lambda i: i % 3, None, [0, 1, 2]),
        (lambda i: np.int64(i % 3), torch.arange(12) % 3, [0, 1, 2]),
        (lambda i: torch.tensor(i % 3), np.arange(12) % 3, [0, 1, 2]),
        (None, None, [0, 1, 2]),
        (lambda i: 2 - i % 3, None, [2, 1, 0]),
        (lambda i: min(i % 3, 1), None, [0, 1, 1]),
        (lambda i: i % 3, torch.stack([torch.arange(12), torch.arange(12)], dim=1), [0, 1, 2]),
        (lambda i: i % 3, [{"boxes": []}] * 12, [0, 1, 2]),
    ],
)
def test_labels__are_those_of_the_items(label: Any, targets: Any, expected: list[int]) -> None:
    """`targets` do not know a `target_transform`, and may hold something else."""
    reader = VisionReader("mine", Labeled(label, targets))
    assert reader.labels().tolist() == expected * 4


def test_labels__of_one_item_of_each_class_are_compared() -> None:
    data = Labeled(lambda i: i % 3)
    reader = VisionReader("mine", data)
    data.read.clear()
    reader.labels()
    assert data.read == [0, 1, 2]


def test_data_set__is_known_by_the_labels_of_its_items() -> None:
    labels: list[Any] = [None, lambda i: i % 3, lambda i: 2 - i % 3, lambda i: i // 4]
    identities = [open_pool([data_of(Labeled(label), "test")], image_size=8, channels=1).identity for label in labels]
    assert identities[0] == identities[1]
    assert len({str(identity) for identity in identities}) == 3


def test_bad_requests(mnist: dict[str, np.ndarray]) -> None:
    for text, pattern in (
        ("torchvision:CIFAR11", "did you mean 'cifar10'"),
        ("torchvision:MNIST:val", "split 'val' is not train or test"),
        ("torchvision:MNIST:train:test", "split 'test' is not train or test"),
        ("torchvision:FakeData:train", "this data set has no splits"),
        ("torchvision:SVHN:nosuch", "is not available: .*nosuch"),
        ("torchvision:CocoDetection", "needs annFile"),
        ("torchvision:ImageNet:val", "is not available: .*ILSVRC2012"),
    ):
        with pytest.raises(RequestError, match=f"(?i){pattern}"):
            open_pool([text], image_size=32, channels=3)


def test_where_the_files_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DFKD_DATA", raising=False)
    monkeypatch.setenv("DFKD_CACHE", "/cache/ours")
    assert data_folder() == Path("/cache/ours/data")
    monkeypatch.delenv("DFKD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert data_folder() == Path("/cache/dfkd/data")
    monkeypatch.setenv("DFKD_DATA", "/here")
    assert data_folder() == Path("/here")
