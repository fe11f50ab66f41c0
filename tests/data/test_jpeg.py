"""JPEG files by simplejpeg: what Pillow says of them stays, to the last bit."""

import struct
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd.data.images import jpeg, load
from dfkd.data.images.decode import decode, reencoded
from dfkd.data.images.frame import Frame, Window, windowed
from dfkd.data.images.jpeg import decoders, plain_jpeg
from dfkd.data.readers.reader import Unreadable


@pytest.fixture
def by_pillow(monkeypatch):
    """Decode as where simplejpeg is not installed."""

    def call(function, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(jpeg, "simplejpeg", lambda: None)
            return function(*arguments, **options)

    return call


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def several(pixels, encode):
    """Files that differ in all that decoders treat in different ways."""
    files = {f"subsampling {n}": encode(pixels, "JPEG", subsampling=n) for n in (0, 1, 2)}
    files["odd"] = encode(pixels[:401, :299], "JPEG", subsampling=2)
    files["progressive"] = encode(pixels, "JPEG", progressive=True, quality=70)
    files["gray"] = encode(pixels[..., 0].copy(), "JPEG")
    files["profile, comment, restarts"] = encode(
        pixels, "JPEG", icc_profile=b"p" * 99, comment=b"c", restart_marker_blocks=5
    )
    files["not turned"] = encode(pixels, "JPEG", exif=turned(1))
    files["several"] = encode(pixels, "MPO", save_all=True, append_images=[Image.fromarray(pixels[::-1].copy())])
    return files


@pytest.mark.parametrize(("size", "channels"), [(16, 3), (64, 1), (72, 3), (72, 1), (224, 3)])
def test_decode__gives_the_bytes_of_pillow(photo, encode, by_pillow, monkeypatch, size, channels):
    frame = Frame(0.875, "bicubic") if size > 64 else Frame()
    for name, file in several(photo, encode).items():
        expected = by_pillow(decode, file, size, channels, frame=frame)
        with monkeypatch.context() as patch:
            patch.setattr(Image.Image, "draft", None)  # it would be Pillow that decodes
            patch.setattr(Image.core, "jpeg_decoder", None, raising=False)
            found = decode(file, size, channels, frame=frame)
        assert np.array_equal(found.pixels, expected.pixels), name
        assert found.shape == expected.shape, name


def test_decode__a_window_has_the_bytes_of_pillow(photo, encode, by_pillow):
    window = Window(area=0.1, share=0.5, factor=0.9, down=0.2, right=0.7)
    for file in several(photo, encode).values():
        found = decode(file, 96, 3, window=window).pixels
        assert np.array_equal(found, by_pillow(decode, file, 96, 3, window=window).pixels)
        assert reencoded(file, 80) == by_pillow(reencoded, file, 80)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_decode__leaves_turned_files_to_pillow(photo, encode, by_pillow, orientation):
    upright = decode(encode(photo, "JPEG", quality=95), 72, 3).pixels
    found = decode(encode(photo, "JPEG", quality=95, exif=turned(orientation)), 72, 3)
    assert found.shape == ((640, 427, 3) if orientation > 4 else (427, 640, 3))
    assert not np.array_equal(found.pixels, upright)


def test_decode__of_damaged_files_is_pillows(photo, encode, by_pillow):
    whole = encode(photo, "JPEG")
    middle = len(whole) // 2
    noisy = whole[:middle] + bytes(64) + whole[middle + 64 :]  # libjpeg goes on, with a warning
    assert np.array_equal(decode(noisy, 72, 3).pixels, by_pillow(decode, noisy, 72, 3).pixels)
    for broken in (whole[:middle], whole[:-2], whole[:30], whole[:2], b"\xff\xd8\xff\xda", whole[:20] + whole[60:]):
        with pytest.raises(Unreadable) as said:
            decode(broken, 72, 3)
        with pytest.raises(Unreadable) as expected:
            by_pillow(decode, broken, 72, 3)
        assert str(said.value) == str(expected.value)


@pytest.mark.parametrize("side", [1, 2, 7, 9])
def test_decode__of_few_pixels(photo, encode, by_pillow, side):
    file = encode(photo[:side, : 2 * side], "JPEG")
    for size in (1, 72):
        assert np.array_equal(decode(file, size, 3).pixels, by_pillow(decode, file, size, 3).pixels)


def test_plain_jpeg__is_read_without_pillow(photo, encode, monkeypatch):
    monkeypatch.setattr(load, "_opened", None)
    assert plain_jpeg(encode(photo, "JPEG")) == (640, 427, "RGB")
    assert decode(encode(photo, "JPEG", icc_profile=b"p" * 99), 72, 3).shape == (427, 640, 3)


def test_plain_jpeg__leaves_what_it_does_not_know(photo, encode):
    whole = encode(photo[:32, :32], "JPEG")
    frame = whole.index(b"\xff\xc0")
    deep = whole[: frame + 4] + b"\x0c" + whole[frame + 5 :]  # 12 bits
    flat = whole[: frame + 5] + struct.pack(">H", 0) + whole[frame + 7 :]  # the height stands behind the pixels
    others = [encode(photo[:32, :32], "PNG"), whole[2:], deep, flat, b"", b"\xff\xd8\xff\xc0\0\2\xff\xda\0\2"]
    others += [encode(photo[:32, :32], "JPEG", exif=turned(6)), whole.replace(b"\xff\xdb", b"\xff\xe2")]
    assert [plain_jpeg(data) for data in others] == [None] * len(others)


def test_decode__keeps_the_limit_against_bombs(photo, encode, monkeypatch):
    file = encode(photo[:100, :100], "JPEG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_999)
    with pytest.raises(Unreadable, match="100x100 pixels: above the limit"):
        decode(file, 72, 3)


def test_decoders__name_what_is_installed(monkeypatch):
    assert decoders() == ("pillow", "simplejpeg")
    jpeg.simplejpeg.cache_clear()
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert decoders() == ("pillow",)
    jpeg.simplejpeg.cache_clear()


def test_windowed__resizes_with_the_channels_of_a_pixel_together(photo, monkeypatch):
    """As planes, into which torch turns what numpy's new axis gives, resizing takes twice as long."""
    resize, seen = torch.nn.functional.interpolate, []
    monkeypatch.setattr(
        torch.nn.functional,
        "interpolate",
        lambda planes, *given, **how: seen.append(planes) or resize(planes, *given, **how),
    )
    windowed(photo.copy(), 72, Frame(), Window(0.5, 0.5, 0.5, 0.5, 0.5))
    assert seen[0].stride()[1] == 1
