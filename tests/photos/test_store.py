"""`select --store`: photographs as JPEG files of a working size."""

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dfkd.data.images.decode import decode, reencoded
from dfkd.formats.shards import Shards
from dfkd.select import stage


def stored_sizes(folder):
    shards = Shards(folder)
    files = [file for table in shards._tables for file in table["image"].chunk(0).field("bytes").to_pylist()]
    return [Image.open(io.BytesIO(file)).size for file in files], sum(map(len, files))


def test_store__writes_larger_photographs_at_the_working_size(studio, selection, tmp_path):
    out = tmp_path / "small"
    assert studio.select(out, "--count", 20, "--store", 98) == 0
    sizes, total = stored_sizes(out)
    before, total_before = stored_sizes(selection)
    assert [min(size) for size in sizes] == [min(98, min(size)) for size in before]
    assert total < total_before
    assert json.loads((out / "manifest.json").read_text())["content"]["options"]["store"] == 98
    rows = np.arange(20)
    differences = np.abs(Shards(out).pixels(rows).astype(int) - Shards(selection).pixels(rows))
    assert differences.mean() < 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--store", 71), "--store 71 is less than the 72 pixels that the teacher's input needs"),
        (("--store", 80, "--crop-pct", 0.8), "less than the 90 pixels"),
        (("--store", 80, "--image-size", 64), "--store 80 is for images above 64 pixels"),
    ],
)
def test_store__refuses_what_loses_pixels_or_does_nothing(studio, tmp_path, capsys, options, said):
    assert studio.select(tmp_path / "out", *options) == 2
    assert said in capsys.readouterr().err


def test_store__names_a_photograph_that_was_damaged_after_scoring(studio, tmp_path, capsys, monkeypatch):
    photos = tmp_path / "photos"
    shutil.copytree(studio.photos, photos)
    choose = stage.choose

    def damaging(*given, **options):
        file = photos / "kind 3" / "03.jpg"
        file.write_bytes(file.read_bytes()[:-500])
        return choose(*given, **options)

    monkeypatch.setattr(stage, "choose", damaging)
    assert replace(studio, photos=str(photos)).select(tmp_path / "out", "--count", 20, "--store", 98) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "photos/kind 3/03.jpg was scored and cannot be read any more (OSError: image file is truncated" in said


def test_reencoded__leaves_a_strip_that_jpeg_cannot_hold():
    file = io.BytesIO()
    Image.new("L", (80_000, 300)).save(file, "PNG")
    assert reencoded(file.getvalue(), 290) == file.getvalue()
    assert Image.open(io.BytesIO(reencoded(file.getvalue(), 200))).size == (53_333, 200)


def test_reencoded__is_upright_and_small_files_stay():
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[:30, :, 0] = 255  # red above
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[::-1, ::-1])).save(file, "JPEG", exif=exif.tobytes())
    small = reencoded(file.getvalue(), 40)
    assert Image.open(io.BytesIO(small)).size == (60, 40)
    assert decode(small, 20, 3).pixels[2, 10, 0] > 200
    assert reencoded(file.getvalue(), 60) == file.getvalue()
