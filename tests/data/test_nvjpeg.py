"""Decoding on a GPU, with libjpeg-turbo in torchvision in nvJPEG's place: all but the device is as on a GPU."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd.data import open_pool
from dfkd.data.images import nvjpeg
from dfkd.data.images.decode import decode
from dfkd.data.images.frame import Crops, Frame
from dfkd.data.images.nvjpeg import Nvjpeg, gpu_decoder
from dfkd.system.errors import RequestError

CPU = torch.device("cpu")


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.fixture
def asked(monkeypatch):
    """The lists of files that torchvision is given."""
    lists, real = [], nvjpeg.decode_jpegs
    monkeypatch.setattr(nvjpeg, "decode_jpegs", lambda files, *rest: lists.append([*files]) or real(files, *rest))
    return lists


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("frame", [Frame(), Frame(0.875, "bicubic")])
def test_nvjpeg__gives_the_views_of_a_cpu_to_a_third_of_a_level(photo, encode, frame, channels):
    files = [encode(photo, "JPEG", exif=turned(orientation)) for orientation in range(1, 9)]
    files += [encode(photo[..., 0].copy(), "JPEG"), encode(photo[:90, :400].copy(), "JPEG", progressive=True)]
    for windows in (None, Crops(0.35, 0).at(0, len(files))):
        found = Nvjpeg(CPU)(files, 240, channels, frame, windows)  # of this size no file is scaled while it is decoded
        for i, file in enumerate(files):
            expected = decode(file, 240, channels, frame=frame, window=None if windows is None else windows[i])
            assert found[i] is not None and found[i].shape == expected.shape, i
            assert np.abs(found[i].pixels.astype(int) - expected.pixels).mean() < 0.3, i


def test_nvjpeg__leaves_other_files_to_the_cpu(photo, encode, asked):
    plain = encode(photo, "JPEG")
    cmyk = io.BytesIO()
    Image.fromarray(photo).convert("CMYK").save(cmyk, "JPEG")
    left = [encode(photo[:100]), cmyk.getvalue(), plain[:-2], plain[:300] + b"\xff\xd9", b"", b"text", 7]
    found = Nvjpeg(CPU)([*left, plain], 96, 3)
    assert [one is None for one in found] == [True] * len(left) + [False]
    assert asked[0][-1] == plain and not {*left[:3]} & {*asked[0]}


def test_nvjpeg__one_refused_file_does_not_keep_the_others(photo, encode, monkeypatch):
    files, sizes, real = [encode(photo[i:], "JPEG") for i in range(7)], [], nvjpeg.decode_jpegs

    def picky(given, *rest):
        sizes.append(len(given))
        if files[5] in given:
            raise RuntimeError("nvjpegDecode failed: 8")
        return real(given, *rest)

    monkeypatch.setattr(nvjpeg, "decode_jpegs", picky)
    found = Nvjpeg(CPU)(files, 96, 3)
    assert [one is None for one in found] == [False] * 5 + [True, False]
    assert sizes == [7, 3, 4, 2, 2, 1, 1]


def test_nvjpeg__limits_the_pixels_that_are_decoded_together(photo, encode, asked, monkeypatch):
    files = [encode(photo[:n, :100].copy(), "JPEG") for n in (100, 100, 300, 100)]
    monkeypatch.setattr(nvjpeg, "_PIXELS_AT_ONCE", 20_000)
    assert None not in Nvjpeg(CPU)(files, 96, 3)
    assert [len(group) for group in asked] == [2, 1, 1]


def test_pool__decodes_on_the_gpu_what_that_can_and_the_rest_as_before(photo, encode, asked, tmp_path):
    for name, file in {
        "a.jpg": encode(photo, "JPEG"),
        "b.png": encode(photo),
        "c.jpg": encode(photo, "JPEG")[:-900],
        "d.jpg": encode(photo[:, ::-1].copy(), "JPEG"),
    }.items():
        (tmp_path / name).write_bytes(file)
    pool = open_pool([str(tmp_path)], image_size=96, channels=3)
    rows = np.array([3, 2, 1, 0])
    expected, found = pool.images(rows), pool.decoded_by(Nvjpeg(CPU)).images(rows)
    assert found.problems == expected.problems and [*found.problems] == [1]
    assert np.abs(found.pixels.astype(int) - expected.pixels).mean() < 1.5  # a CPU scales while it decodes
    assert [len(group) for group in asked] == [2]


@pytest.mark.parametrize(
    ("device", "photographs", "said"),
    [
        ("cpu", True, "--decoder nvjpeg needs a GPU, and the device is cpu; leave it out"),
        ("meta", False, "--decoder nvjpeg is for images above 64 pixels"),
        (
            "meta",
            True,
            "--decoder nvjpeg: torchvision cannot decode on the GPU .not compiled with nvJPEG support.; leave",
        ),
    ],
)
def test_gpu_decoder__is_refused_in_one_line(device, photographs, said, monkeypatch):
    def without_nvjpeg(*_):
        raise RuntimeError("not compiled with nvJPEG support\nException raised from decode_jpegs_cuda")

    monkeypatch.setattr(nvjpeg, "decode_jpegs", without_nvjpeg)
    monkeypatch.setattr(nvjpeg, "_DEVICE", "meta")
    assert gpu_decoder("cpu", torch.device(device), photographs) is None
    with pytest.raises(RequestError, match=said) as refused:
        gpu_decoder("nvjpeg", torch.device(device), photographs)
    assert "\n" not in str(refused.value)


def test_gpu_decoder__is_that_of_the_device(monkeypatch):
    monkeypatch.setattr(nvjpeg, "_DEVICE", "cpu")
    assert isinstance(gpu_decoder("nvjpeg", CPU, True), Nvjpeg)
