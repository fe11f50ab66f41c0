"""Decoding of a few small files, by every library that is installed."""

import io
import json
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from dfkd.data.images import nvjpeg


@pytest.fixture
def decoding(tmp_path, script, monkeypatch):
    """The script, with two files of one shape and one round; it writes decoding.json."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(file, "JPEG")
    with tarfile.open(tmp_path / "caltech101-000.tar", "w") as tar:
        for number in range(2):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = len(file.getvalue())
            tar.addfile(member, io.BytesIO(file.getvalue()))
    decoding = script("decoding", "speed")
    monkeypatch.setattr(decoding, "SHAPES", {(120, 90): (32, 72)})
    monkeypatch.setattr(decoding, "ROUNDS", 1)
    monkeypatch.setenv("DFKD_PHOTOS", str(tmp_path))
    return decoding


def test_rows_for_every_shape_and_library(tmp_path, decoding, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["decoding.py", str(tmp_path / "decoding.json"), "2"])
    decoding.main()
    rows = json.loads((tmp_path / "decoding.json").read_text())["rows"]
    names = [row["what"] for row in rows]
    assert {"120x90 to 32, files/s: dfkd, Pillow", "120x90 to 72, files/s: dfkd, torchvision.io"} <= {*names}
    assert all(row["dfkd"] > 0 and row["bare"] > 0 for row in rows)


def test_a_row_for_a_gpu_beside_the_threads(tmp_path, decoding, monkeypatch):
    """torchvision decodes on the CPU in the GPU's place."""
    monkeypatch.setattr(nvjpeg, "_DEVICE", "cpu")
    monkeypatch.setattr(decoding, "BATCH", 3)
    monkeypatch.setattr(sys, "argv", ["decoding.py", str(tmp_path / "decoding.json"), "2", "nvjpeg"])
    decoding.main()
    (row,) = json.loads((tmp_path / "decoding.json").read_text())["rows"]
    assert row["what"].startswith("120x90 to 72, files/s: nvjpeg, ")
    assert row["decoded_by_gpu"] == 3 and row["levels_of_difference"] < 1
    assert row["dfkd"] > 0 and row["bare"] > 0
