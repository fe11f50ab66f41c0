"""Photographs as squares, against torchvision's transforms; random windows of files."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from dfkd.data.images.decode import conversions, decode, fit
from dfkd.data.images.frame import Crops, Frame, Window, framed, windowed

CENTER = Window(area=0.25, share=0.0, factor=0.5, down=0.5, right=0.5)
"""A quarter of the image, of the proportions of a square."""


@pytest.fixture
def photo(photo):
    return photo.copy()  # the one that scikit-learn reads cannot be written, of which torch warns


def jpeg(pixels, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0, **options)
    return file.getvalue()


@pytest.mark.parametrize(("crop_pct", "side"), [(1.0, 72), (0.875, 82), (0.9, 80), (72 / 83, 83)])
def test_frame__resizes_the_shorter_side_to_the_ratio(crop_pct, side):
    assert Frame(crop_pct).resized(72) == side


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
@pytest.mark.parametrize("box", [(0, 0, 640, 427), (0, 0, 101, 200), (5, 5, 42, 42), (0, 0, 300, 33)])
def test_framed__is_torchvisions_resize_and_center_crop(photo, kind, box):
    pixels, frame = np.array(Image.fromarray(photo).crop(box)), Frame(0.875, kind)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    resized = F.resize(planes, frame.resized(72), InterpolationMode(kind), antialias=True)
    expected = F.center_crop(resized, 72).permute(1, 2, 0).numpy()
    found = framed(pixels[None], 72, frame)[0]
    assert np.abs(found.astype(int) - expected).max() <= 1  # torch rounds differently in another memory layout
    assert np.array_equal(fit(pixels[None], 72, 3, frame)[0], found)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    assert np.array_equal(decode(file.getvalue(), 72, 3, frame=frame).pixels, found)


def test_framed__a_strip_does_not_grow():
    strip = np.zeros((1, 1, 100_000, 3), np.uint8)  # resized as a whole it would have 22 million columns
    assert framed(strip, 224, Frame()).shape == (1, 224, 224, 3)


def test_conversions__name_the_resize_and_the_crop():
    said = conversions((100, 200, 3), 72, 3, Frame(0.875, "bicubic"))
    assert said["size"] == "200x100 images are resized to 82 pixels (antialiased bicubic) and cropped to 72x72"


def test_decode__of_a_large_jpeg_takes_no_more_than_is_needed(photo):
    whole = decode(jpeg(photo), 72, 3).pixels.astype(int)
    exact = framed(np.array(Image.open(io.BytesIO(jpeg(photo))))[None], 72, Frame())[0]
    assert 0 < np.abs(whole - exact).mean() < 2  # of 427 rows every second is decoded, by the DCT


def test_window__takes_its_share_within_the_image():
    for window in Crops(0.3, seed=1).at(0, 200):
        top, left, rows, columns = window.box(120, 160)
        assert 0 <= top <= 120 - rows and 0 <= left <= 160 - columns
        assert 0.29 <= rows * columns / (120 * 160) <= 1 or rows == 120
        assert rows == 120 or 0.74 <= columns / rows <= 1.36
    assert Window(1.0, 0.0, 0.5, 0.9, 0.9).box(50, 50) == (0, 0, 50, 50)
    assert Window(0.01, 0.0, 0.5, 0.0, 0.0).box(1, 1) == (0, 0, 1, 1)


def test_crops__depend_on_position_and_seed_alone():
    crops = Crops(0.3, seed=7)
    assert crops.at(5, 10)[3:] == crops.at(8, 7)
    assert crops.at(0, 4) != Crops(0.3, seed=8).at(0, 4)
    drawn = np.array([[w.share, w.factor, w.down, w.right] for w in crops.at(0, 2_000)])
    assert np.abs(drawn.mean(axis=0) - 0.5).max() < 0.03
    assert drawn.min() >= 0 and drawn.max() < 1
    assert all(a != b for a, b in pairwise(crops.at(0, 50)))


def test_windowed__resizes_a_part_of_the_image(photo):
    top, left, rows, columns = CENTER.box(*photo.shape[:2])
    part = np.ascontiguousarray(photo[None, top : top + rows, left : left + columns])
    expected = F.resize(torch.from_numpy(part).permute(0, 3, 1, 2), [72, 72], antialias=True)[0].permute(1, 2, 0)
    assert np.abs(windowed(photo, 72, Frame(), CENTER).astype(int) - expected.numpy()).max() <= 1


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_decode__a_window_lies_in_the_upright_image(photo, orientation):
    turns = {1: 0, 3: 2, 6: 1}  # counterclockwise, to be turned back when it is read
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(np.rot90(photo, turns[orientation]))
    window = Window(area=0.1, share=0.0, factor=0.9, down=0.2, right=0.7)
    found = decode(jpeg(stored, exif=exif.tobytes()), 72, 3, window=window).pixels
    expected = windowed(photo, 72, Frame(), window)
    assert np.abs(found.astype(int) - expected).mean() < 3
