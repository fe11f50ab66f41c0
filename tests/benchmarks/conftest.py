"""The scripts of benchmarks/quality and benchmarks/speed, on images of a few kilobytes."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from dfkd.models import cifar_resnet

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """A script as a module, by its name and folder."""

    def load(name, folder="quality"):
        monkeypatch.syspath_prepend(BENCHMARKS / folder)
        return importlib.import_module(name)

    return load


@pytest.fixture
def data(tmp_path):
    """A folder with files like those of benchmarks/quality/images.py: the brightness is the class."""
    folder, rng = tmp_path / "data", np.random.default_rng(0)
    folder.mkdir()
    for name, count in {"cifar10_train40k": 64, "cifar10_heldout10k": 20, "pool_tiny_imagenet_32": 40}.items():
        labels = np.arange(count) % 10
        images = rng.integers(0, 20, (count, 32, 32, 3)) + 25 * labels[:, None, None, None]
        arrays = {"images": images.astype(np.uint8), "labels": labels}
        np.savez(folder / f"{name}.npz", **({"images": arrays["images"]} if name.startswith("pool") else arrays))
    return folder


@pytest.fixture
def small_teachers(tmp_path, monkeypatch):
    """Two teachers in place of those of `RAW` in a script of the speed, whose weights lie in DFKD_TEACHERS."""
    monkeypatch.setenv("DFKD_TEACHERS", str(tmp_path))
    torch.save(cifar_resnet(8, width=8).state_dict(), tmp_path / "one.pt")
    torch.save(cifar_resnet(14, width=4).state_dict(), tmp_path / "two.pt")
    return {
        "one": ("cifar_resnet:depth=8,width=8@{}/one.pt", "cifar10"),
        "two": ("cifar_resnet:depth=14,width=4@{}/two.pt", "imagenet"),
    }
