"""Files from strangers, through the real commands: nothing is executed, what is shown is escaped."""

import io
import json
import os
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from dfkd.formats.shards import Shards
from dfkd.models import cifar_resnet
from dfkd.models.load import load_model
from dfkd.system.checksums import sealed

SIDE = 16
EVIL_NAME = "\x1b[2J<script>alert(1)\n=cmd|\u202e.png"
SHOWN = r"\x1b[2J<script>alert(1)\n=cmd|\u202e.png"


class WritesAFile:
    """Unpickling this runs code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def to_file(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.fixture
def refused(lab, capsys):
    """Run a command that is wrong; its last line, which is one of ours."""

    def run(*arguments):
        capsys.readouterr()
        assert lab.dfkd(*arguments) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert all(line.isprintable() for line in said.splitlines())
        assert said.splitlines()[-1].startswith("dfkd ")
        return said.splitlines()[-1]

    return run


def pickles(folder, mark):
    """Files that write `mark` where they are unpickled."""
    state = cifar_resnet(depth=8).state_dict()
    torch.save(WritesAFile(mark), folder / "whole.pt")
    torch.save({"state_dict": state, "args": WritesAFile(mark)}, folder / "beside.pth")
    torch.save({**state, "fc.weight": WritesAFile(mark)}, folder / "legacy.th", _use_new_zipfile_serialization=False)
    (folder / "bare.pt").write_bytes(pickle.dumps(WritesAFile(mark)))
    return ["whole.pt", "beside.pth", "legacy.th", "bare.pt"]


def test_weights_are_loaded_without_running_what_they_say(lab, tmp_path, refused):
    mark = tmp_path / "executed"
    for name in pickles(tmp_path, mark):
        said = refused("evaluate", "--model", f"cifar_resnet:depth=8@{tmp_path / name}", "--data", lab.heldout)
        assert "save model.state_dict() instead, or use safetensors" in said, name
        assert not mark.exists(), name
    with pytest.raises(FileExistsError):  # the pickle is one that works
        mark.mkdir()
        pickle.loads((tmp_path / "bare.pt").read_bytes())


def change(path, out, edit, more=()):
    """A copy of a zip file with other members."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for member in old.namelist():
            new.writestr(member, edit(member, old.read(member)))
        for name, data in more:
            new.writestr(name, data)
    return out


def test_an_exported_program_runs_tensor_operators_alone(lab, tmp_path, refused):
    whole, mark = tmp_path / "whole.pt2", tmp_path / "executed"
    assert lab.dfkd("export", "--model", lab.teacher, "--image-size", SIDE, "--out", whole) == 0
    assert load_model(str(whole)).classes == 10
    root = zipfile.ZipFile(whole).namelist()[0].partition("/")[0]
    evil = json.dumps(f"__import__('os').mkdir('{mark}')")

    def texts(old, new):
        return lambda name, data: data.replace(old.encode(), new.encode()) if name.endswith("model.json") else data

    def sample(name, data):
        return pickle.dumps(WritesAFile(mark)) if name.endswith("sample_inputs/model.pt") else data

    aten = '"torch.ops.aten.linear.default"'
    description = zipfile.ZipFile(whole).read(f"{root}/models/model.json").decode()
    size = description[description.index('"expr_str": ') :].split('", ')[0] + '"'
    for edit, more, words in (
        (texts(size, f'"expr_str": {evil}'), (), "which is not arithmetic and could run code"),
        (texts(size, '"expr_str": "S(\'1\').__class__"'), (), "not arithmetic"),
        (texts(aten, '"torch.hub.load"'), (), "only tensor operators"),
        (texts(aten, '"torch.ops.aten.from_file.default"'), (), "only tensor operators"),
        (texts('{"name": "linear"}', '{"name": "x):\\n  import os #"}'), (), "which is not an identifier"),
        (sample, (), "pickled Python objects"),
        (
            lambda n, d: d,
            [(f"{root}/data/weights/model.pt", pickle.dumps(WritesAFile(mark)))],
            "pickled Python objects",
        ),
        (lambda n, d: d, [(f"{root}/data/aotinductor/model/x.so", b"")], "compiled code"),
        (lambda n, d: d, [("other/models/model.json", description)], "not a program of this format"),
        (lambda n, d: d.replace(b'"use_pickle": false', b'"use_pickle": true'), (), "pickled tensors"),
    ):
        changed = change(whole, tmp_path / "changed.pt2", edit, more)
        assert words in refused("evaluate", "--model", changed, "--data", lab.heldout), words
        assert not mark.exists()


def test_absurd_safetensors_are_refused(lab, tmp_path, refused):
    good = save(cifar_resnet(depth=8).state_dict())
    header = b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}'
    for content in (
        struct.pack("<Q", 2**63) + good[8:],
        struct.pack("<Q", 10**9) + good[8:],
        struct.pack("<Q", len(header)) + header + b"\0" * 4,
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b'{"a"',
        good[:-4],
        b"",
    ):
        (tmp_path / "w.safetensors").write_bytes(content)
        model = f"cifar_resnet:depth=8@{tmp_path / 'w.safetensors'}"
        assert "cannot be read" in refused("evaluate", "--model", model, "--data", lab.heldout)


def bomb(side):
    """A PNG of a few hundred bytes that says it has side x side pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


def test_images_of_every_kind_are_decoded_or_skipped_and_counted(lab, tmp_path, rng, capsys):
    """The table of docs/reliability.md."""
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    picture, other = Image.fromarray(pixels), Image.new("RGB", (SIDE, SIDE), "red")
    palette = picture.quantize(16)
    luma = np.asarray(picture.convert("L"))
    expected = {
        "animated.gif": (to_file(picture.convert("L"), "GIF", save_all=True, append_images=[other]), luma),
        "animated.webp": (to_file(picture, "WEBP", save_all=True, append_images=[other], lossless=True), luma),
        "sixteen.png": (to_file(Image.fromarray(luma.astype(np.uint16) * 256 + 200)), luma),
        "cmyk.jpg": (to_file(picture.convert("CMYK"), "JPEG", quality=95), None),
        "palette.png": (to_file(palette), np.asarray(palette.convert("RGB").convert("L"))),
        "transparent.png": (to_file(Image.new("RGBA", (SIDE, SIDE), (1, 2, 3, 0))), np.full((SIDE, SIDE), 255)),
        "really-a-bmp.png": (to_file(picture, "BMP"), luma),
        "strip.png": (to_file(Image.new("L", (50_000, 1), 7)), np.full((SIDE, SIDE), 7)),
    }
    whole = to_file(picture)
    skipped = {
        "zero.png": b"",
        "truncated.png": whole[: len(whole) // 2],
        "text.jpg": b"this is a letter",
        "program.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\nshowpage\n",
        "bomb.png": bomb(100_000),
        "absurd.png": bomb(2**31 - 1),
        "float.tif": to_file(picture.convert("F"), "TIFF"),
    }
    for name, data in {**{name: data for name, (data, _) in expected.items()}, **skipped}.items():
        (folder / name).write_bytes(data)
    common = ("--teacher", lab.teacher, *lab.flags, "--pool", folder, "--method", "random")
    assert lab.dfkd("select", *common, "--out", tmp_path / "out", "--max-unreadable", 1, "--count", len(expected)) == 0
    shards = Shards(tmp_path / "out")
    assert {image.source for image in shards.manifest.unreadable} == {f"photos/{name}" for name in skipped}
    assert not any(str(tmp_path) in image.why for image in shards.manifest.unreadable)
    assert shards.manifest.reasons["unreadable"] == len(skipped)
    stored = dict(zip(shards.column("source"), shards.pixels(np.arange(len(shards)))[..., 0].astype(int), strict=True))
    for name, (_, gray) in expected.items():
        assert gray is None or np.abs(stored[f"photos/{name}"] - gray).max() <= 2, name
    said = capsys.readouterr().err
    assert re.search(r"unreadable and skipped: 7 \(\S+, \S+, \S+, \.\.\.; manifest.json names them\)", said)
    assert lab.dfkd("select", *common, "--out", tmp_path / "no") == 2
    assert "7 of 15 images cannot be read, above --max-unreadable 0.01: photos/absurd.png" in capsys.readouterr().err


def test_members_of_a_tar_that_lead_out_of_it_are_only_names(lab, tmp_path, rng):
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "pool.tar", "w") as archive:
        for name in ("../../up.png", "/etc/absolute.png", "a/../b.png", "plain.png"):
            data = to_file(Image.fromarray(rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for kind, name in (
            (tarfile.SYMTYPE, "link.png"),
            (tarfile.LNKTYPE, "hard.png"),
            (tarfile.FIFOTYPE, "fifo.png"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/hostname"
            archive.addfile(info)
    before = sorted(tmp_path.rglob("*"))
    common = ("--teacher", lab.teacher, *lab.flags, "--pool", tmp_path / "in" / "pool.tar", "--method", "random")
    assert lab.dfkd("select", *common, "--out", tmp_path / "out", "--count", 4) == 0
    origins = Shards(tmp_path / "out").column("source").tolist()
    assert origins == ["pool.tar/" + name for name in ("../../up.png", "etc/absolute.png", "a/../b.png", "plain.png")]
    assert [p for p in sorted(tmp_path.rglob("*")) if tmp_path / "out" not in (p, *p.parents)] == before


def test_arrays_with_pickled_objects_are_refused(lab, tmp_path, refused):
    mark = tmp_path / "executed"
    objects = np.empty(2, dtype=object)
    objects[:] = [WritesAFile(mark), None]
    pixels = np.zeros((2, SIDE, SIDE), np.uint8)
    np.savez(tmp_path / "images.npz", images=objects)
    np.savez_compressed(tmp_path / "packed.npz", images=objects)
    np.savez(tmp_path / "labels.npz", images=pixels, labels=objects)
    for name, words in (
        ("images", "it holds object, not uint8"),
        ("packed", "it holds object"),
        ("labels", "labels of"),
    ):
        model = ("--model", lab.teacher, *lab.flags)
        assert words in refused("evaluate", *model, "--data", tmp_path / f"{name}.npz")
        assert not mark.exists()


def test_an_archive_that_would_fill_the_disk_is_refused_before_it_is_unpacked(lab, tmp_path, refused, monkeypatch):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (4, 8, 8)})
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(10**8))
    assert (tmp_path / "bomb.npz").stat().st_size < 10**6
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: pytest.fail("it was unpacked"))
    assert "does not fit its 100000" in refused("evaluate", "--model", lab.teacher, "--data", tmp_path / "bomb.npz")


def test_tables_with_other_columns_or_types_are_refused(lab, tmp_path, refused):
    for table, words in (
        (pa.table({"photo": [b"x"], "label": [1]}), "has no image column"),
        (pa.table({"image": ["/etc/hostname"]}), "is string, not images"),
        (pa.table({"image": [1.5]}), "is double, not images"),
        (pa.table([pa.array([b"x"]), pa.array([b"y"])], names=["image", "image"]), "several columns 'image'"),
        (pa.table({"image": [[[[1.0]]]]}), "not images"),
        (pa.table({"image": [{"path": "/etc/hostname"}]}), "not images"),
    ):
        pq.write_table(table, tmp_path / "t.parquet")
        with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        for suffix in ("parquet", "arrow"):
            common = (
                "--teacher",
                lab.teacher,
                *lab.flags,
                "--pool",
                tmp_path / f"t.{suffix}",
                "--out",
                tmp_path / "out",
            )
            assert words in refused("select", *common), (suffix, words)


def test_names_are_escaped_wherever_they_are_shown(lab, tmp_path, rng, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)).save(folder / f"{i}{EVIL_NAME}")
    (folder / f"7{EVIL_NAME}").write_bytes(b"")
    common = ("--teacher", lab.teacher, *lab.flags, "--pool", folder, "--method", "random")
    assert lab.dfkd("select", *common, "--out", tmp_path / "no") == 2
    said = capsys.readouterr().err
    assert "photos/7" + SHOWN.replace("\\n", " ") + " (is an empty file" in said  # a message is one line
    out = tmp_path / f"s{EVIL_NAME}"
    assert lab.dfkd("select", *common, "--out", out, "--max-unreadable", 1, "--count", 6) == 0
    assert lab.dfkd("inspect", out, "--out", tmp_path / "s.html") == 0
    run = ("--name", f"=1+1{EVIL_NAME}", "--steps", 2, "--batch-size", 4, "--test", lab.heldout)
    assert lab.distill(out, tmp_path / "run", *run) == 0
    assert lab.dfkd("compare", tmp_path / "run", "--out", tmp_path / "c.html") == 0
    assert lab.dfkd("inspect", f"gone{EVIL_NAME}") == 2
    said, shown = capsys.readouterr()
    for text in (said, shown):
        assert all(line.isprintable() for line in text.splitlines()), text
        assert SHOWN in text
    for name in ("s.html", "c.html"):
        page = (tmp_path / name).read_text(encoding="utf-8")
        assert "<script>alert" not in page and "\x1b" not in page and "\u202e" not in page
        assert "\\x1b[2J&lt;script&gt;alert(1)\\n=cmd|\\u202e.png" in page
    row = (tmp_path / "c.csv").read_text(encoding="utf-8").splitlines()
    assert len(row) == 2
    assert row[1].startswith("'=1+1\\x1b[2J<script>")
    assert Shards(out).column("source")[0] == f"photos/0{EVIL_NAME}"  # what is stored is the name itself


def test_a_name_that_is_no_utf8_is_stored_and_shown(lab, tmp_path, rng, capsys, refused):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/p\xff")
    os.mkdir(folder)
    for name in (b"a\xfe.png", b"b.png"):
        image = to_file(Image.fromarray(rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)))
        Path(folder, os.fsdecode(name)).write_bytes(image)
    common = ("--teacher", lab.teacher, *lab.flags, "--method", "random", "--count", 2)
    assert lab.dfkd("select", *common, "--pool", folder, "--out", tmp_path / "out") == 0
    assert Shards(tmp_path / "out").column("source").tolist() == [r"p\udcff/a\xfe.png", r"p\udcff/b.png"]
    assert lab.dfkd("inspect", tmp_path / "out", "--out", tmp_path / "x.html") == 0
    assert "is not UTF-8" in refused("select", *common, "--pool", folder, "--out", f"{folder}/out")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[select]\ngamma = 'high'", "gamma='high' is not a number"),
        ("[select]\ncount = 1.5", "count=1.5 is not a whole number"),
        ("[select]\npool = { a = 1 }", "is not text"),
        ("[select]\nmethod = ['random']", "is not text"),
        ("[select]\nbalance = 3", "balance=3 is not one of none, class, cluster"),
        ("[select]\nmethod = \"a\\u0000b\"", "is not text"),
        ("select = 3", "has no option 'select'"),
        ("seed = 1e400", "is not a whole number"),
        ("seed = 9223372036854775808", "is not at least 0 and below"),
        ("gamma = nan", "--gamma nan is not above 0"),
        ("x = " + "[" * 5000, "cannot be read"),
        ("seed = " + "9" * 5000, "cannot be read"),
        ("\x00", "cannot be read"),
    ],
)  # fmt: skip
def test_presets_of_wrong_types_are_refused(lab, tmp_path, refused, text, said):
    (tmp_path / "p.toml").write_text(text)
    common = ("--teacher", lab.teacher, "--pool", lab.pool, "--out", tmp_path / "out")
    assert said in refused("select", *common, "--preset", tmp_path / "p.toml")
    assert refused("run", tmp_path / "p.toml")


def test_a_manifest_may_not_lead_out_of_its_folder(lab, selection, tmp_path, refused):
    manifest = json.loads((selection / "manifest.json").read_text())
    del manifest["checksum"]  # whoever edits a manifest in bad faith can compute another one
    for file in manifest["files"]:
        (tmp_path / file["name"]).write_bytes((selection / file["name"]).read_bytes())
    folder = tmp_path / "s"
    folder.mkdir()
    for name in ("../data-00000.arrow", str(tmp_path / "data-00000.arrow"), "..", "", 5):
        changed = manifest | {"files": [manifest["files"][0] | {"name": name}]}
        (folder / "manifest.json").write_text(json.dumps(sealed(changed)))
        said = refused("inspect", folder)
        assert "files[0].name is not the name of a file in the folder" in said or "files[0].name is not text" in said
    for edit in (
        {"content": []},
        {"image": {}},
        {"classes": "ten"},
        {"classes": 3},
        {"threshold": "high"},
        {"reasons": 3},
    ):
        (selection_copy := tmp_path / "copy").mkdir(exist_ok=True)
        for file in selection.iterdir():
            (selection_copy / file.name).write_bytes(file.read_bytes())
        (selection_copy / "manifest.json").write_text(json.dumps(sealed(manifest | edit)))
        assert refused("inspect", selection_copy), edit
        assert refused(
            "distill",
            "--teacher",
            lab.teacher,
            "--student",
            "lenet5",
            "--samples",
            selection_copy,
            "--out",
            tmp_path / "r",
        )


def test_code_from_a_data_set_is_never_run(lab, tmp_path, refused):
    """A folder with a loading script, as the Hub once had them; and no line of ours trusts one."""
    import dfkd

    folder, mark = tmp_path / "evil", tmp_path / "executed"
    folder.mkdir()
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    refused("select", "--teacher", lab.teacher, *lab.flags, "--pool", f"hf:{folder}", "--out", tmp_path / "out")
    assert not mark.exists()
    for path in Path(dfkd.__file__).parent.rglob("*.py"):
        for word in ("trust_remote_code", "weights_only=False", "allow_pickle=True"):
            assert word not in path.read_text(encoding="utf-8"), path
