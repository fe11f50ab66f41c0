"""Image files, folders, tars and tables as people have them, through the commands."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import save_file

from dfkd.app import cli
from dfkd.data import open_pool
from dfkd.data.readers import chunks
from dfkd.models import cifar_resnet
from dfkd.system.errors import RequestError

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
    origins = pool.origins(ALL)
    assert pool.labels().tolist() == [int(origin.split("/")[1]) for origin in origins]


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


def write_links(path: Path, members: dict[str, bytes | tuple[bytes, str]]) -> Path:
    """A tar of which some members are links: their type, and the name that they lead to."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            else:
                info.type, info.linkname = data
                tar.addfile(info)
    return path


def test_tar__reads_links_to_its_own_members(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Archives of a folder with hard and symbolic links, also in circles, and to files that are not packed."""
    hard, soft = tarfile.LNKTYPE, tarfile.SYMTYPE
    members: dict[str, bytes | tuple[bytes, str]] = {
        "./d/0.png": encode(PIXELS[0]),
        "./d/0.cls": b"5",
        "./e/1.png": (hard, "./d/0.png"),
        "./e/1.cls": (hard, "./d/0.cls"),
        "./e/2.png": (soft, "../f/3.png"),
        "./e/2.cls": b"7",
        "./f/3.png": encode(PIXELS[3]),
        "./f/3.cls": b"7",
        "./f/4.png": (soft, "../e/2.png"),
        "./f/4.cls": b"7",
        "./f/5.png": (soft, "6.png"),
        "./f/6.png": (soft, "5.png"),
        "./f/7.png": (hard, "/etc/passwd"),
    }
    path = write_links(tmp_path / "x.tar", members)
    for _ in range(2):  # the second time by the index that the first has kept
        pool = open_pool([str(path)], image_size=16, channels=3)
        assert pool.origins(np.arange(len(pool))) == [f"x.tar/{n}.png" for n in ("d/0", "e/1", "e/2", "f/3", "f/4")]
        assert np.array_equal(pool.images(np.arange(5)).pixels, PIXELS[[0, 0, 3, 3, 3]])
        assert pool.labels().tolist() == [5, 5, 7, 7, 7]
        assert "3 links to nothing in it" in capsys.readouterr().err


def test_tar__reads_labels_that_are_links_of_any_name_and_order(tmp_path: Path) -> None:
    hard, soft = tarfile.LNKTYPE, tarfile.SYMTYPE
    members: dict[str, bytes | tuple[bytes, str]] = {
        "d/first.png": encode(PIXELS[0]),
        "d/first.cls": (soft, "22.06.cls"),
        "d/22.05.png": encode(PIXELS[1]),
        "d/22.05.cls": b"3",
        "d/22.06.png": encode(PIXELS[2]),
        "d/22.06.cls": (hard, "d/22.05.cls"),
        "d/last.png": encode(PIXELS[3]),
        "d/last.cls": (soft, "nothing.cls"),
    }
    path = write_links(tmp_path / "x.tar", members)
    with pytest.raises(RequestError, match=r"there is no member 'd/last\.cls'"):
        open_pool([str(path)], image_size=16, channels=3).labels()
    write_links(path, {**members, "d/last.cls": (soft, "first.cls")})
    assert open_pool([str(path)], image_size=16, channels=3).labels().tolist() == [3, 3, 3, 3]


def test_content_decides__what_an_image_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Photos with rare, wrong or no suffixes, among other files, in a folder and in a tar."""
    names = ["00.jfif", "01.jpe", "02.JPG_large", "03", "04.img", "05.dat", "06.x", "07.gfi", "08"]
    kinds = ["JPEG", "JPEG", "JPEG", "JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"]
    images = {name: encode(PIXELS[i], kind) for i, (name, kind) in enumerate(zip(names, kinds, strict=True))}
    others = {
        "20.heic": b"\0\0\0\x18ftypheic",
        "21.avif": b"\0\0\0\x18ftypavif",
        "22.zzz": b"zz",
        "23.jpg.part": images["03"],
    }
    members = images | others | {f"{name[:2]}.cls": b"0" for name in names}
    (tmp_path / "f").mkdir()
    for name, data in members.items():
        (tmp_path / "f" / name).write_bytes(data)
    tar = write_tar(tmp_path / "x.tar", members)
    extra: dict[str, dict[str, int]] = {"f": {".cls": 9}, "x.tar": {}}
    for given in (tmp_path / "f", tar, tar):
        pool = open_pool([str(given)], image_size=16, channels=3)
        assert pool.left_out == {given.name: {".avif": 1, ".heic": 1, ".part": 1, ".zzz": 1, **extra[given.name]}}
        assert sorted(origin.partition("/")[2] for origin in pool.origins(np.arange(len(pool)))) == names
        assert not pool.images(np.arange(len(pool))).problems
        said = capsys.readouterr().err
        assert all(f"1 {suffix}" in said for suffix in (".heic", ".avif", ".zzz", ".part")), said
    assert pool.labels().tolist() == [0] * 9


def test_select__writes_down_what_is_left_out(tmp_path: Path) -> None:
    """Pools with files that are no images, and files and folders without any, in the manifest."""
    save_file(cifar_resnet(depth=8, width=4, num_classes=4).state_dict(), tmp_path / "t.safetensors")
    images = {f"{i}.png": encode(PIXELS[i]) for i in range(6)}
    write_tar(tmp_path / "s-0.tar", {**images, "a.heic": b"\0\0\0\x18ftypheic", "noname": b"x"})
    write_tar(tmp_path / "s-1.tar", {"a.json": b"{}"})
    write_tar(tmp_path / "t.tar", images)
    (tmp_path / "none").mkdir()
    model = ("--teacher", f"cifar_resnet:depth=8,width=4@{tmp_path / 't.safetensors'}", "--image-size", "16")
    pools = {"clean": ["t.tar"], "mixed": ["s-*.tar", "t.tar", "none"]}
    for name, pool in pools.items():
        given = ["--pool", *(str(tmp_path / one) for one in pool), "--count", "4", "--out", str(tmp_path / name)]
        assert cli.main(["select", *model, *given]) == 0
    manifests = {name: json.loads((tmp_path / name / "manifest.json").read_text()) for name in pools}
    assert "left_out" not in manifests["clean"]
    assert manifests["mixed"]["left_out"] == {
        "none": {"without images": 1},
        "s-1.tar": {"without images": 1},
        "s-0.tar": {".heic": 1, "without suffix": 1},
    }
    assert cli.main(["inspect", str(tmp_path / "mixed")]) == 0


def test_tar__takes_the_member_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """WebDataset samples that hold an image and its mask."""
    for shard in range(2):
        members = {}
        for i in range(6):
            members |= {f"{i}.png": encode(PIXELS[6 * shard + i]), f"{i}.mask.png": encode(PIXELS[i] // 255 * 255)}
            members |= {f"{i}.cls": b"%d" % i}
        write_tar(tmp_path / f"m-{shard}.tar", members)
    one = str(tmp_path / "m-0.tar")
    for _ in range(2):
        assert len(open_pool([one], image_size=16, channels=3)) == 12
        assert "samples of several images (mask.png, png)" in capsys.readouterr().err
    pool = open_pool([str(tmp_path / "m-{0..1}.tar#png")], image_size=16, channels=3)
    assert np.array_equal(pool.images(ALL).pixels, PIXELS)
    assert pool.labels().tolist() == [*range(6)] * 2
    assert pool.origins(ALL[6:7]) == ["m-1.tar/0.png"]
    both = [open_pool([one + end], image_size=16, channels=3).identity for end in ("", "#png", "#mask.png")]
    assert both[0] != both[1] != both[2]
    with pytest.raises(RequestError, match=r"holds no images named KEY\.jpg"):
        open_pool([one + "#jpg"], image_size=16, channels=3)


@pytest.mark.parametrize("kind", ["binary", "struct", "raw"])
def test_parquet__reads_a_large_row_group_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Row groups above the 2 GB that Arrow's arrays hold; here a few hundred bytes are that much."""
    cells: list[object] = [image.tolist() if kind == "raw" else encode(image) for image in PIXELS]
    if kind == "struct":
        cells = [{"bytes": data, "path": None} for data in cells]
    lists = pa.list_(pa.list_(pa.list_(pa.uint8())))
    types = {"binary": pa.binary(), "struct": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "raw": lists}
    images = pa.array(cells, types[kind])
    pq.write_table(pa.table({"image": images, "label": ALL}), tmp_path / "x.parquet", row_group_size=9)
    whole = open_pool([str(tmp_path / "x.parquet")], image_size=16, channels=3)
    monkeypatch.setattr(chunks, "_MOST_BYTES", 2200)
    pool = open_pool([str(tmp_path / "x.parquet")], image_size=16, channels=3)
    assert len(pool._parts[0][1]._chunks.lengths) > 3
    assert pool.identity == whole.identity
    for order in (ALL, ALL[::-1], ALL[[11, 0, 5, 6, 2]], ALL[3:5]):
        assert np.array_equal(pool.images(order).pixels, PIXELS[order])
    assert pool.labels().tolist() == ALL.tolist()
