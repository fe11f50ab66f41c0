"""Small valid inputs from which the fuzzer starts, of every kind that a target reads: one function per target."""

import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 8
_folder = tempfile.TemporaryDirectory(prefix="dfkd-fuzz-")  # removed when the process ends
FOLDER = Path(_folder.name)
"""Folder of the inputs that are read from files."""


def _pixels(count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def _images() -> list[bytes]:
    from PIL import Image

    picture = Image.fromarray(_pixels(1)[0])
    frames = [Image.fromarray(pixels) for pixels in _pixels(3)]
    deep = Image.fromarray(_pixels(1)[0, :, :, 0].astype(np.uint16) * 257)
    saved = [
        *((picture, format, {}) for format in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")),
        (picture.convert("CMYK"), "JPEG", {}),
        (picture, "JPEG", {"progressive": True}),
        (picture.convert("RGBA"), "PNG", {}),
        (picture.convert("P"), "PNG", {"transparency": 3}),
        (picture.convert("1"), "PNG", {}),
        (picture.convert("L"), "PPM", {}),
        (picture, "TIFF", {"compression": "tiff_lzw"}),
        (deep, "PNG", {}),
        (deep, "TIFF", {}),
        (frames[0], "GIF", {"save_all": True, "append_images": frames[1:]}),
        (frames[0], "WEBP", {"save_all": True, "append_images": frames[1:], "lossless": True}),
        (frames[0], "PNG", {"save_all": True, "append_images": frames[1:]}),
    ]
    files = []
    for one, format, options in saved:
        file = io.BytesIO()
        one.save(file, format, **options)
        files.append(file.getvalue())
    return files


def _tars() -> list[bytes]:
    import tarfile

    found = []
    for format, name in ((tarfile.USTAR_FORMAT, "a"), (tarfile.GNU_FORMAT, "b" * 120), (tarfile.PAX_FORMAT, "é" * 60)):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=format) as archive:
            for member, content in ((f"{name}.bmp", _images()[3]), (f"{name}.cls", b"3"), ("../up.png", b"x")):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
            archive.addfile(link)
        found.append(file.getvalue()[:8192])
    return found


def _npzs() -> list[bytes]:
    found = []
    flat = _pixels(2).transpose(0, 3, 1, 2).reshape(2, -1)
    for save, arrays in (
        (np.savez, {"images": _pixels(), "labels": np.arange(4)}),
        (np.savez_compressed, {"x": _pixels(2), "y": np.arange(2)}),
        (np.savez, {"data": flat, "labels": np.array([1, 2])}),
        (np.savez, {"images": np.array([{"a": 1}, None], dtype=object)}),
    ):
        file = io.BytesIO()
        save(file, **arrays)
        found.append(file.getvalue())
    return found


def _tables() -> list[Any]:
    import pyarrow as pa

    lists = pa.array(_pixels(2).tolist(), pa.list_(pa.list_(pa.list_(pa.uint8()))))
    cells = [{"bytes": file, "path": None} for file in _images()[:3]] + [{"bytes": None, "path": "/etc/hostname"}, None]
    return [
        pa.table({"image": cells, "label": [0, 1, 2, 3, 4]}),
        pa.table({"image": lists, "label": [0, 1]}),
        pa.table({"jpg": _images()[:2]}),
    ]


def _parquets() -> list[bytes]:
    import pyarrow.parquet as pq

    found = []
    for table in _tables():
        for compression in ("snappy", "none"):
            file = io.BytesIO()
            pq.write_table(table, file, compression=compression)
            found.append(file.getvalue())
    return found


def _arrows() -> list[bytes]:
    import pyarrow as pa

    found = []
    for table in _tables():
        for new in (pa.ipc.new_file, pa.ipc.new_stream):
            file = io.BytesIO()
            with new(file, table.schema) as writer:
                writer.write_table(table)
            found.append(file.getvalue())
    return found


def selection() -> Path:
    """Write a selection of four images once. Returns its folder."""
    from dfkd.formats.manifest import write_manifest
    from dfkd.formats.shards import Rows, write_shards

    folder = FOLDER / "selection"
    if not folder.exists():
        rows = Rows(
            image=_pixels(),
            source=[f"pool.npz#{i}" for i in range(4)],
            prediction=np.arange(4) % 3,
            confidence=np.full(4, 0.5),
            entropy=np.full(4, 0.25),
            logits=np.zeros((4, 3), np.float16),
            kept_classes=np.ones((4, 3), bool),
        )
        files = write_shards(folder, [rows], "0123456789abcdef")
        write_manifest(folder, _manifest(files))
        (FOLDER / "manifest.json").write_bytes((folder / "manifest.json").read_bytes())
    return folder


def _manifest(files: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "fingerprint": "0123456789abcdef",
        "teacher": "lenet5@w.pt",
        "source": "selection",
        "count": 4,
        "image": {"encoded": False, "size": SIDE, "channels": 3},
        "classes": 3,
        "per_class": [2, 1, 1],
        "threshold": 0.5,
        "admitted": 4,
        "reasons": {"selected": 4, "unreadable": 1},
        "unreadable": [{"source": "pool.npz#9", "why": "is no image"}],
        "filter": {"inception_score": [2.0, 3.0], "kernel": np.eye(3)[:, :, None, None].tolist(), "bias": [0.0] * 3},
        "content": {
            "teacher": {"architecture": "lenet5", "weights": "0"},
            "preprocess": {"normalize": "none", "image_size": SIDE, "channels": 3},
            "options": {"method": "threshold:gamma=0.7", "count": None},
            "seed": 0,
        },
        "files": files,
    }


def _manifests() -> list[bytes]:
    selection()
    whole = (FOLDER / "manifest.json").read_bytes()
    return [whole, json.dumps(json.loads(whole)).encode(), b"{}", b"[" * 50, b'{"format": 1, "files": [], "image": {}}']


def _texts() -> list[bytes]:
    return (
        """
cifar_resnet:depth=20,width=16
kd:0.5
explicit:0.5,weight=1e-3
timm.create_model:model_name='a,b'
threshold:gamma=0.7,draw=entropy
first=bn1 last=linear:input
0.5,0.5,0.5/0.2,0.2,0.2
imagenet
owner/name/config@main:train[:10%]
shard-{000..003}.{tar,tgz}
n:a=[1,{'b':(2,)}],c="x"
m:k=none,l=True
""".strip()
        .encode()
        .splitlines()
    )


def _tomls() -> list[bytes]:
    return [
        b'gamma = 0.5\nseed = 3\n[select]\nmethod = "random"\ncount = 10\n[distill]\nloss = ["kd:2"]\nlr = 0.1\n',
        b'out = "o"\nseeds = [0, 1]\n[defaults]\nteacher = "t"\npool = ["p"]\nstudent = "s"\n'
        b'[select.a]\nmethod = "random"\n[distill.b]\nsamples = ["a"]\nflip = false\n',
        b"[distill.a]\nx = 1979-05-27T07:32:00Z\ny = { z = [1, [2]], w = inf }\n",
    ]


def _weights() -> list[bytes]:
    import torch
    from safetensors.torch import save

    state = {"a.weight": torch.ones(2, 2), "b": torch.zeros(1, dtype=torch.int64)}
    found = [save(state)]
    for content, new in ((state, True), ({"state_dict": state, "epoch": 3}, True), (state, False), ([1], True)):
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=new)
        found.append(file.getvalue())
    return found


def _programs() -> list[bytes]:
    import torch
    from torch import nn

    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)).eval()
    dynamic = ({0: torch.export.Dim("batch")},)
    file = io.BytesIO()
    torch.export.save(torch.export.export(network, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=dynamic), file)
    with zipfile.ZipFile(file) as archive:
        return [archive.read(name) for name in archive.namelist() if name.endswith(".json")]


SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "image": _images,
    "tar": _tars,
    "npz": _npzs,
    "parquet": _parquets,
    "arrow": _arrows,
    "manifest": _manifests,
    "names": _texts,
    "toml": _tomls,
    "weights": _weights,
    "program": _programs,
}
"""Functions that return the seeds, by the name of the target."""
