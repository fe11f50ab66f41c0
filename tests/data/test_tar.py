import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dfkd.data import open_pool
from dfkd.data.readers import tar
from dfkd.data.readers.tar import TarReader
from dfkd.system.errors import RequestError


def write_tar(path: Path, members: dict[str, bytes], format: int = tarfile.USTAR_FORMAT, mtime: float = 0) -> None:
    with tarfile.open(path, "w", format=format) as tar:
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime  # type: ignore[assignment]
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_in_every_tar_format(tmp_path: Path, patches: np.ndarray, encode: Callable, format: int) -> None:
    long = "d" * 90 + "/" + "n" * (120 if format != tarfile.USTAR_FORMAT else 90)  # beyond one header's name field
    names = ["./a.png", f"{long}.png", "ü.x.png", "b.JPG"]
    members = {name: encode(patches[i]) for i, name in enumerate(names)}
    write_tar(tmp_path / "x.tar", {"readme.txt": b"x" * 700, **members}, format, mtime=1.5)
    pool = open_pool([str(tmp_path / "x.tar")], image_size=16, channels=3)
    order = np.array([3, 1, 0, 2])
    assert pool.origins(order) == [f"x.tar/{names[i].removeprefix('./')}" for i in order]
    assert np.array_equal(pool.images(order).pixels, patches[order])
    assert pool.files(order) == [members[names[i]] for i in order]


def test_shards_by_range_and_glob(tmp_path: Path, patches: np.ndarray, encode: Callable) -> None:
    for shard in range(3):
        samples = {f"{i}.png": encode(patches[4 * shard + i]) for i in range(4)}
        labels = {f"{i}.cls": str(4 * shard + i).encode() for i in range(4)}
        mixed = dict(sorted((samples | labels).items()))  # 0.cls, 0.png, 1.cls, ...
        write_tar(tmp_path / f"x-{shard:03d}.tar", mixed)
    spelled = [str(tmp_path / text) for text in ("x-{000..002}.tar", "x-*.tar", "x-{000,001,002}.tar")]
    pools = [open_pool([text], image_size=16, channels=3) for text in spelled]
    every = np.arange(12)
    for pool in pools:
        assert pool.origins(every) == [f"x-{i // 4:03d}.tar/{i % 4}.png" for i in range(12)]
        assert np.array_equal(pool.images(every[::-1]).pixels, patches[::-1])
        assert pool.labels().tolist() == list(range(12))
        assert len(pool.identity) == 1
    write_tar(tmp_path / "x-001.tar", {"0.png": encode(patches[0])})
    changed = open_pool([spelled[0]], image_size=16, channels=3)
    assert changed.identity != pools[0].identity
    with pytest.raises(RequestError, match=r"there is no member '0\.cls'"):
        changed.labels()
    with pytest.raises(RequestError, match=r"there is no '.*x-003\.tar'; did you mean 'x-00\d\.tar'"):
        open_pool([str(tmp_path / "x-{000..003}.tar")], image_size=16, channels=3)
    with pytest.raises(RequestError, match="no file matches"):
        open_pool([str(tmp_path / "y-*.tar")], image_size=16, channels=3)


def test_broken_archives(tmp_path: Path, patches: np.ndarray, encode: Callable) -> None:
    path = tmp_path / "x.tar"
    write_tar(path, {f"{i}.png": encode(patches[i]) for i in range(4)})
    whole = path.read_bytes()
    data_end = whole.rindex(b"IEND")
    for broken in (whole[: data_end - 100], whole[:512] + b"?" * 512 + whole[1024:], b"", b"\x1f\x8b" + b"gz" * 500):
        path.write_bytes(broken)
        with pytest.raises(RequestError, match="is not a whole uncompressed tar file"):
            open_pool([str(path)], image_size=16, channels=3)
    write_tar(path, {"a.txt": b"text"})
    with pytest.raises(RequestError, match="holds no images"):
        open_pool([str(path)], image_size=16, channels=3)


def test_an_archive_that_shrinks_is_a_problem(tmp_path: Path, patches: np.ndarray, encode: Callable) -> None:
    path = tmp_path / "x.tar"
    write_tar(path, {f"{i}.png": encode(patches[i]) for i in range(4)})
    pool = open_pool([str(path)], image_size=16, channels=3)
    path.write_bytes(path.read_bytes()[:1200])
    assert list(pool.images(np.arange(4)).problems) == [0, 1, 2, 3]


def test_where_the_members_lie_is_kept_for_the_next_command(
    tmp_path: Path, patches: np.ndarray, encode: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.tar"
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "cache"))
    scan, scanned = TarReader._scan, []
    monkeypatch.setattr(TarReader, "_scan", lambda self: (scanned.append(self._path), scan(self))[1])

    def pixels() -> np.ndarray:
        pool = open_pool([str(path)], image_size=16, channels=3)
        return pool.images(np.arange(len(pool))).pixels

    write_tar(path, {f"{i}.png": encode(patches[i]) for i in range(3)})
    for _ in range(2):
        assert np.array_equal(pixels(), patches[:3])
    assert len(scanned) == 1
    (kept,) = (tmp_path / "cache" / "tars").iterdir()
    kept.write_bytes(kept.read_bytes()[:-20])
    assert np.array_equal(pixels(), patches[:3])
    assert len(scanned) == 2, "a damaged index is made anew"

    write_tar(path, {f"{i}.png": encode(patches[i]) for i in (4, 5)})
    assert np.array_equal(pixels(), patches[4:6])

    before = path.stat()
    data = bytearray(path.read_bytes())
    data[512 + data[512:].index(b"5.png")] ^= 1  # the second image's header
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    pool = open_pool([str(path)], image_size=16, channels=3)
    images = pool.images(np.arange(2))
    assert np.array_equal(images.pixels[0], patches[4])
    assert images.problems == {1: "cannot be read from its tar file: a header is damaged"}
    with pytest.raises(RequestError, match=r"x\.tar' has changed since it was first opened \(a header is damaged\)"):
        pool.origins(np.arange(2))
    write_tar(path, {f"{i}.png": encode(patches[i]) for i in (4, 5)})

    pool = open_pool([str(path)], image_size=16, channels=3)
    tar._recent_headers.cache_clear()
    shutil.rmtree(tmp_path / "cache")
    assert np.array_equal(pool.images(np.arange(2)).pixels, patches[4:6]), "a cache that was cleared since"

    (tmp_path / "file").touch()
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "file"))
    assert np.array_equal(pixels(), patches[4:6]), "a cache that cannot be written is no trouble"


@pytest.mark.parametrize("damaged", ["", "{", "[1]", '{"notes": []}', '{"notes": 3, "left_out": 4}'])
def test_what_was_left_out__is_counted_anew_if_the_kept_notes_are_damaged(
    tmp_path: Path,
    patches: np.ndarray,
    encode: Callable,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damaged: str,
) -> None:
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "cache"))
    write_tar(tmp_path / "x.tar", {"0.png": encode(patches[0]), "0.heic": b"photo"})
    for _ in range(2):
        assert open_pool([str(tmp_path / "x.tar")], image_size=16, channels=3).left_out == {"x.tar": {".heic": 1}}
        assert "note: x.tar holds 1 files that are not taken as images: 1 .heic" in capsys.readouterr().err
        (kept,) = (tmp_path / "cache" / "tars").glob("*.json")
        kept.write_text(damaged)


def test_where_the_members_lie__is_in_memory_of_few_archives(
    tmp_path: Path, patches: np.ndarray, encode: Callable
) -> None:
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", {f"{i}.png": encode(patches[i % 12]) for i in range(50)})
    pool = open_pool([str(tmp_path / "{0..2}.tar")], image_size=16, channels=3)
    assert not [
        held for _, reader, _ in pool._parts for held in vars(reader).values() if isinstance(held, (np.ndarray, tuple))
    ]
    assert pool.origins(np.array([149, 0])) == ["2.tar/49.png", "0.tar/0.png"]
