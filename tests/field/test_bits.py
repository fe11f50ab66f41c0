"""Images whose values have more than 8 bits."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from dfkd.app import cli
from dfkd.data import open_pool
from dfkd.formats.shards import Shards
from dfkd.models import cifar_resnet

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
ALL = np.arange(12)


@pytest.mark.parametrize(("bits", "dark"), [(8, True), (12, True), (16, False)])
def test_decode__notes_the_largest_value_of_16_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bits: int, dark: bool
) -> None:
    """Gray PNG and TIFF files with 16 bits, of which the camera used fewer."""
    for i, suffix in enumerate((".png", ".tif", ".png")):
        values = (PIXELS[i, ..., 0].astype(np.uint16) << 8) >> (16 - bits)
        values[0, 0] = 2**bits - 1
        Image.fromarray(values).save(tmp_path / f"{i}{suffix}")
    pool = open_pool([str(tmp_path)], image_size=16, channels=1)
    assert np.array_equal(pool.images(ALL[:3]).pixels[:, 1:, :, 0], PIXELS[:3, 1:, :, 0] >> (16 - bits))
    said = capsys.readouterr().err
    assert f"the largest value is {2**bits - 1}" in said and ("come out dark" in said) == dark


def tiff_of_12_bits(values: np.ndarray) -> bytes:
    """A TIFF file whose samples have 12 bits each, which Pillow does not write."""
    height, width = values.shape
    rows = b"".join(int("".join(f"{v:012b}" for v in row), 2).to_bytes(3 * width // 2, "big") for row in values)
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(rows)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(rows)) + rows + struct.pack("<H", len(tags)) + entries + bytes(4)


def color_png_of_16_bits(values: np.ndarray) -> bytes:
    """A PNG file of 16 bits a channel, which Pillow does not write."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    blocks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in blocks
    )


def test_decode__takes_the_bits_that_a_file_says_or_the_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gray images of 12 bits: in 16-bit PNG and TIFF files, and in formats that say their range."""
    gray = PIXELS[0, ..., 0].astype(np.uint16) << 4 | 5
    for name in ("0.png", "1.tif"):
        Image.fromarray(gray).save(tmp_path / name)
    (tmp_path / "2.tif").write_bytes(tiff_of_12_bits(gray))
    (tmp_path / "3.pgm").write_bytes(b"P5 16 16 4095\n" + gray.astype(">u2").tobytes())
    Image.fromarray(PIXELS[0, ..., 0]).save(tmp_path / "4.png")
    pool = open_pool([str(tmp_path)], image_size=16, channels=1, bits=12)
    assert all(np.array_equal(image, PIXELS[0, ..., :1]) for image in pool.images(ALL[:5]).pixels)
    assert "note" not in capsys.readouterr().err
    plain = open_pool([str(tmp_path)], image_size=16, channels=1)
    right = [np.array_equal(image, PIXELS[0, ..., :1]) for image in plain.images(ALL[:5]).pixels]
    assert right == [False, False, True, True, True]
    assert pool.identity == [{**plain.identity[0], "bits": 12}]
    assert "the largest value is 4069; they come out dark: --bits 12 scales gray" in capsys.readouterr().err
    narrow = open_pool([str(tmp_path)], image_size=16, channels=1, bits=10)
    assert narrow.images(ALL[:1]).pixels.max() == 255
    assert "need more than --bits 10" in capsys.readouterr().err


def test_decode__says_what_becomes_of_16_bits_in_color(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Color images of 12 bits in 16-bit files, of which Pillow reads the upper 8 bits alone."""
    (tmp_path / "0.png").write_bytes(color_png_of_16_bits(PIXELS[0].astype(np.uint16) << 4))
    Image.fromarray(PIXELS[0]).save(tmp_path / "1.png")
    pool = open_pool([str(tmp_path)], image_size=16, channels=3)
    assert np.array_equal(pool.images(ALL[:2]).pixels, [PIXELS[0] >> 4, PIXELS[0]])
    assert "the largest value is 4095; they come out dark" in capsys.readouterr().err
    problems = open_pool([str(tmp_path)], image_size=16, channels=3, bits=12).images(ALL[:2]).problems
    assert list(problems) == [0] and "color of 16 bits" in problems[0]


def test_commands__take_the_bits_of_large_images(tmp_path: Path) -> None:
    """Files of 12 bits that a selection keeps as they are, for what learns from it and for a test."""
    (tmp_path / "p" / "2").mkdir(parents=True)
    gray = [np.random.default_rng(i).integers(0, 256, (72, 72), dtype=np.uint8) for i in range(3)]
    for i, image in enumerate(gray):
        Image.fromarray(image.astype(np.uint16) << 4).save(tmp_path / "p" / "2" / f"{i}.png")
    given = ("--image-size", "72", "--normalize", "none", "--bits", "12")
    network = cifar_resnet(depth=8, width=4, num_classes=4, in_channels=1)
    save_file(network.state_dict(), tmp_path / "t.safetensors")
    model = f"cifar_resnet:depth=8,width=4,in_channels=1@{tmp_path / 't.safetensors'}"
    pool = ("--pool", str(tmp_path / "p"), "--count", "3", "--method", "random")
    assert cli.main(["select", "--teacher", model, *pool, "--out", str(tmp_path / "s"), *given]) == 0
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert manifest["image"]["bits"] == 12 and "bits" not in manifest["config"]
    assert np.array_equal(Shards(tmp_path / "s").pixels(np.arange(3))[..., 0], gray)
    assert cli.main(["select", "--teacher", model, *pool, "--out", str(tmp_path / "s"), *given[:-2]]) == 2
    assert cli.main(["evaluate", "--model", model, "--data", str(tmp_path / "p"), *given]) == 0
    assert cli.main(["evaluate", "--model", model, "--data", str(tmp_path / "p"), "--bits", "17"]) == 2
