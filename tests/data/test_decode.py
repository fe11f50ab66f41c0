import io
import os
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional as F

from dfkd.data.images.decode import conversions, decode, fit, processors
from dfkd.data.readers.reader import Unreadable


def to_file(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def reference(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(F.center_crop(F.resize(image, size), size))


@pytest.mark.parametrize("box", [(0, 0, 640, 427), (0, 0, 101, 200), (5, 5, 42, 42), (0, 0, 300, 33)])
@pytest.mark.parametrize("size", [32, 65])
def test_resize_and_crop_as_torchvision_does(photo: np.ndarray, box: tuple[int, ...], size: int) -> None:
    image = Image.fromarray(photo).crop(box)
    expected = reference(image, size).astype(int)
    decoded = decode(to_file(image, "PNG"), size, 3)
    assert decoded.shape == (box[3] - box[1], box[2] - box[0], 3)
    assert np.abs(decoded.pixels - expected).max() <= 1
    raw = fit(np.array(image)[None], size, 3)[0]
    assert np.abs(raw - expected).max() <= 2


def test_gray_both_ways(photo: np.ndarray, encode: Callable) -> None:
    square = photo[:64, :64]
    luma = np.asarray(Image.fromarray(square).convert("L"))[..., None]
    assert np.array_equal(decode(encode(square), 64, 1).pixels, luma)
    assert np.array_equal(fit(square[None], 64, 1)[0], luma)
    assert np.array_equal(decode(encode(luma[..., 0]), 64, 3).pixels, np.repeat(luma, 3, 2))
    assert np.array_equal(fit(luma[None], 64, 3)[0], np.repeat(luma, 3, 2))


def test_alpha_is_laid_over_white(photo: np.ndarray) -> None:
    alpha = np.linspace(0, 255, 64 * 64).astype(np.uint8).reshape(64, 64, 1)
    stored = np.concatenate([photo[:64, :64], alpha], 2)
    expected = (stored[..., :3] * (alpha / 255) + 255 - alpha).round().astype(int)
    decoded = decode(to_file(Image.fromarray(stored), "PNG"), 64, 3)
    assert decoded.shape == (64, 64, 4)
    assert np.abs(decoded.pixels - expected).max() <= 1
    assert np.abs(fit(stored[None], 64, 3)[0] - expected).max() <= 1
    assert fit(stored[None], 64, 1).shape == (1, 64, 64, 1)
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30] + [0] * 765)
    assert (decode(to_file(palette, "PNG"), 8, 3).pixels == [10, 20, 30]).all()
    assert (decode(to_file(palette, "GIF", transparency=0), 8, 3).pixels == 255).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_the_upper_eight(photo: np.ndarray, format: str) -> None:
    gray = photo[:32, :32, 0]
    file = to_file(Image.fromarray(gray.astype(np.uint16) * 256 + 77), format)
    assert np.array_equal(decode(file, 32, 1).pixels[..., 0], gray)


def test_other_modes(photo: np.ndarray) -> None:
    image = Image.fromarray(photo[:64, :64])
    cmyk = decode(to_file(image.convert("CMYK"), "JPEG", quality=95), 64, 3).pixels
    assert np.abs(cmyk.astype(int) - photo[:64, :64]).mean() < 6
    bits = image.convert("1")
    assert np.array_equal(decode(to_file(bits, "PNG"), 64, 1).pixels[..., 0], np.asarray(bits) * 255)
    with pytest.raises(Unreadable, match="floating-point"):
        decode(to_file(image.convert("F"), "TIFF"), 64, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(photo: np.ndarray, orientation: int) -> None:
    upright = Image.fromarray(photo[:48, :96])
    turns = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(turns[orientation]) if turns[orientation] is not None else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(to_file(stored, "PNG", exif=exif), 24, 3)
    assert np.abs(decoded.pixels - reference(upright, 24).astype(int)).max() <= 1
    assert decoded.shape == (48, 96, 3)


def test_large_jpeg_is_decoded_near_the_size(photo: np.ndarray) -> None:
    image = Image.fromarray(photo)
    file = to_file(image, "JPEG", quality=95)
    decoded = decode(file, 32, 3)
    assert decoded.shape == (427, 640, 3)
    assert np.abs(decoded.pixels.astype(int) - reference(image, 32)).mean() < 3


def test_a_strip_stays_cheap() -> None:
    strip = Image.new("RGB", (200_000, 1), (1, 2, 3))  # resized as a whole it would take 10 billion pixels
    assert (decode(to_file(strip, "PNG"), 224, 3).pixels == [1, 2, 3]).all()


def test_what_cannot_be_decoded(photo: np.ndarray, encode: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    for format in ("PNG", "JPEG", "WEBP", "BMP", "TIFF"):
        whole = encode(photo, format)
        with pytest.raises(Unreadable):
            decode(whole[: len(whole) // 2], 32, 3)
    for item in (b"", b"text", np.zeros((4, 4)), None):
        with pytest.raises(Unreadable):
            decode(item, 32, 3)
    file = encode(photo)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    with pytest.raises(Unreadable, match="DecompressionBomb"):
        decode(file, 32, 3)
    opened = Image.open(io.BytesIO(encode(photo[:100, :100])))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_999)
    with pytest.raises(Unreadable, match="100x100 pixels: above the limit"):
        decode(opened, 32, 3)


def test_conversions_are_named() -> None:
    assert conversions((32, 32, 3), 32, 3) == {}
    assert conversions((64, 64, 3), 32, 1) == {
        "size": "64x64 images are resized to 32x32 (antialiased bilinear)",
        "channels": "color is converted to gray (ITU-R 601 luma)",
    }
    assert "the center is kept" in conversions((64, 48, 1), 32, 3)["size"]
    assert set(conversions((32, 32, 4), 32, 3)) == {"alpha"}


def test_a_thread_for_every_processor_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert processors() == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert processors() == 64
