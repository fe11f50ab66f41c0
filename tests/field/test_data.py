"""Image files, folders, tars and tables as people have them, through the commands."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dfkd.data import open_pool
from dfkd.errors import RequestError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
ALL = np.arange(12)


def encode(pixels: np.ndarray, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_tar__leaves_out_what_macos_adds(tmp_path: Path) -> None:
    """Archives that were packed on macOS, with a `._` member beside every member."""
    members = {}
    for i, image in enumerate(PIXELS):
        for name, data in ((f"d/{i:02d}.png", encode(image)), (f"d/{i:02d}.cls", b"%d" % i)):
            members |= {name.replace("d/", "d/._"): b"\0\5\x16\7Mac OS X", name: data}
    pool = open_pool([str(write_tar(tmp_path / "x.tar", members))], image_size=16, channels=3)
    assert np.array_equal(pool.images(ALL).pixels, PIXELS)
    assert pool.labels().tolist() == ALL.tolist()


def test_folder__takes_whole_numbers_as_labels(tmp_path: Path) -> None:
    """Class folders whose names are the labels, and sort otherwise as text than as numbers."""
    for i, image in enumerate(PIXELS):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "a.png").write_bytes(encode(image))
    pool = open_pool([str(tmp_path)], image_size=16, channels=3)
    sources = pool.sources(ALL)
    assert pool.labels().tolist() == [int(source.split("/")[1]) for source in sources]


def test_folder__may_hold_a_file_state_json(tmp_path: Path) -> None:
    """Folders of photos beside which another program keeps a file of the name that `datasets` uses."""
    (tmp_path / "state.json").write_text("{}")
    (tmp_path / "a.png").write_bytes(encode(PIXELS[0]))
    assert len(open_pool([str(tmp_path)], image_size=16, channels=3)) == 1


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_decode__reads_images_with_a_broken_exif_block(tmp_path: Path, format: str) -> None:
    """Photos whose EXIF block a tool has cut or overwritten, while their pixels are whole."""
    for i, exif in enumerate(
        [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x09\1\x12"]
    ):
        (tmp_path / f"{i}.{format.lower()}").write_bytes(encode(PIXELS[i], format, exif=exif))
    pool = open_pool([str(tmp_path)], image_size=16, channels=3)
    found = pool.images(np.arange(3))
    assert not found.problems
    assert format == "JPEG" or np.array_equal(found.pixels, PIXELS[:3])


def test_open_pool__leaves_out_what_holds_no_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shards of which some hold no sample: tars, tables and folders, by pattern and one after the other."""
    for i, some in enumerate((PIXELS[:6], [], PIXELS[6:])):
        write_tar(tmp_path / f"s-{i}.tar", {f"{k}.png": encode(image) for k, image in enumerate(some)})
        table = pa.table({"image": pa.array([encode(image) for image in some], pa.binary())} if len(some) else {})
        pq.write_table(table, tmp_path / f"p-{i}.parquet")
    (tmp_path / "s-folder").mkdir()
    for given in (
        ["s-*.tar"],
        ["p-*.parquet"],
        ["s-0.tar", "s-1.tar", "s-2.tar"],
        ["s-2.tar", "s-{1,0}.tar", "s-folder"],
    ):
        pool = open_pool([str(tmp_path / one) for one in given], image_size=16, channels=3)
        assert len(pool) == 12
        assert "holds no images" in capsys.readouterr().err
    for empty in (["s-1.tar"], ["s-{1,1}.tar"], ["p-1.parquet", "s-folder"]):
        with pytest.raises(RequestError, match="holds no images"):
            open_pool([str(tmp_path / one) for one in empty], image_size=16, channels=3)


def test_open_pool__notes_what_is_given_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pools that name one file twice, through a pattern or a link, or a folder and one within it."""
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", images=PIXELS)
    (tmp_path / "f" / "g").mkdir(parents=True)
    (tmp_path / "f" / "g" / "a.png").write_bytes(encode(PIXELS[0]))
    (tmp_path / "link.npz").symlink_to(tmp_path / "a.npz")
    twice = (["a.npz", "a.npz"], ["[ab].npz", "b.npz"], ["link.npz", "a.npz"], ["f", "f/g"])
    for given in (*twice, ["a.npz", "b.npz"], ["f"]):
        open_pool([str(tmp_path / one) for one in given], image_size=16, channels=3)
        assert ("more than once" in capsys.readouterr().err) == (given in twice), given
