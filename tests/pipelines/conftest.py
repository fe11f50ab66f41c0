"""A teacher of handwritten digits, pools without a digit, and the real commands, in this process."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dfkd.app import cli, demo

FITTED_ON = 64
"""Images on which a student's layers are fitted: by default 1,024, which would take most of the time of a short run."""


@pytest.fixture(autouse=True, scope="module")
def _quick_fits():
    """Fit a student's layers on fewer images, and a filter in a quarter of the steps, on half of the images, each four
    times as long.

    For a module, because runs that its tests share are made before the first of them begins.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dfkd.distill.init.reconstruct._IMAGES", FITTED_ON)
        patch.setattr("dfkd.select.filters._STEPS", 15)
        patch.setattr("dfkd.select.filters._BATCH", 32)
        patch.setattr("dfkd.select.filters._RATE", 2e-2)
        yield


@dataclass(frozen=True)
class Lab:
    folder: Path
    teacher: str
    pool: str
    """1,200 images without a digit."""
    few: str
    """The first 120 of them, where it does not matter how many there are: a teacher's answers take time."""
    heldout: str
    """400 digits and their labels."""
    few_heldout: str
    """The first 100 of them."""

    fitted_on = FITTED_ON
    flags = ("--normalize", demo.NORMALIZE, "--image-size", demo.SIDE, "--precision", "fp32")

    @staticmethod
    def dfkd(*arguments):
        """Run a command; its exit status."""
        return cli.main([str(a) for a in arguments])

    def select(self, out, *more):
        """Select from the pool as it is, unless a filter is named: its pixels can be found again."""
        more = more if "--filter" in more else ("--filter", "none", *more)
        pool = () if "--pool" in more else ("--pool", self.pool)
        return self.dfkd("select", "--teacher", self.teacher, *self.flags, *pool, "--out", out, *more)

    def distill(self, samples, out, *more):
        student = ("--student", "cifar_resnet:depth=8,width=4", "--precision", "fp32")
        samples = () if "--samples" in more else ("--samples", samples)
        return self.dfkd("distill", "--teacher", self.teacher, *student, *samples, "--out", out, *more)


@pytest.fixture(scope="session")
def lab(tmp_path_factory, digits_teacher):
    folder = tmp_path_factory.mktemp("lab")
    images, labels = demo.digits()
    shutil.copy(digits_teacher, folder / "teacher.safetensors")
    pool = demo.patches(1200)
    for name, count in (("heldout", 400), ("few_heldout", 100)):
        np.savez(folder / f"{name}.npz", images=images[1000 : 1000 + count], labels=labels[1000 : 1000 + count])
    for name, count in (("pool", 1200), ("few", 120)):
        np.savez(folder / f"{name}.npz", images=pool[:count])
    data = {name: str(folder / f"{name}.npz") for name in ("pool", "few", "heldout", "few_heldout")}
    return Lab(folder, f"{demo.TEACHER}@{folder / 'teacher.safetensors'}", **data)


@pytest.fixture(scope="session")
def selection(lab, tmp_path_factory):
    """One selection that many tests read."""
    out = tmp_path_factory.mktemp("shared") / "selection"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFKD_CACHE", str(tmp_path_factory.mktemp("shared-cache")))
        assert lab.select(out, "--count", 400) == 0
    return out
