"""Photographs as a folder of JPEG files, a small teacher of 72 pixels with random weights, and the real commands."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd.app import cli
from dfkd.models import cifar_resnet

SIZE, CLASSES = 72, 5
NETWORK = "cifar_resnet:depth=8,width=4"


@pytest.fixture(autouse=True, scope="module")
def _quick_fits():
    """Fit a student's layers on 16 photographs: on all that it takes by default a fit has most of a test's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dfkd.distill.init.reconstruct._IMAGES", 16)
        yield


@dataclass(frozen=True)
class Studio:
    """Where the photographs and the teacher's weights are."""

    folder: Path
    photos: str
    teacher: str

    flags = ("--image-size", SIZE, "--precision", "fp32")

    @staticmethod
    def dfkd(*arguments):
        """Run a command; its exit status."""
        return cli.main([str(argument) for argument in arguments])

    def select(self, out, *more):
        teacher = ("--teacher", self.teacher, *self.flags)
        return self.dfkd("select", *teacher, "--pool", self.photos, "--method", "random", "--out", out, *more)

    def distill(self, samples, out, *more):
        student = () if "--student" in more else ("--student", "cifar_resnet:depth=8,width=2")
        quick = ("--samples", samples, "--steps", 2, "--batch-size", 4, "--precision", "fp32")
        return self.dfkd("distill", "--teacher", self.teacher, *student, *quick, "--out", out, *more)


def photo(rng, width, height):
    """Smooth shapes with some noise, as a camera's picture has."""
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height), 3)
    noisy = np.asarray(coarse) + rng.normal(0, 3, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def studio(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("studio"), np.random.default_rng(0)
    for k in range(CLASSES):
        (folder / "photos" / f"kind {k}").mkdir(parents=True)
    for i in range(20):
        width, height = ((160, 120), (120, 160), (96, 100), (400, 300))[i % 4]
        photo(rng, width, height).save(folder / "photos" / f"kind {i % CLASSES}" / f"{i:02d}.jpg", quality=90)
    torch.manual_seed(0)
    torch.save(cifar_resnet(8, width=4, num_classes=CLASSES).state_dict(), folder / "teacher.pt")
    return Studio(folder, str(folder / "photos"), f"{NETWORK}@{folder / 'teacher.pt'}")


@pytest.fixture(scope="session")
def selection(studio, tmp_path_factory):
    """All photographs, which many tests read."""
    out = tmp_path_factory.mktemp("shared") / "selection"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFKD_CACHE", str(tmp_path_factory.mktemp("shared-cache")))
        assert studio.select(out, "--count", 20) == 0
    return out
