"""Pools of an object store: the same images as from the disk, few requests, and what happens when the network fails."""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfkd.data import open_pool
from dfkd.data.readers import tar
from dfkd.system import remote
from dfkd.system.errors import RequestError


def tar_of(files: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return written.getvalue()


def parquet_of(files: list[bytes]) -> bytes:
    written = io.BytesIO()
    pq.write_table(pa.table({"image": files, "label": list(range(len(files)))}), written, row_group_size=10)
    return written.getvalue()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, bytes], None]]:
    """Puts a file into fsspec's memory file system, and beside it on the disk."""
    system = fsspec.filesystem("memory")
    monkeypatch.setattr(remote, "PAUSE", 0.0)

    def put(name: str, data: bytes) -> None:
        system.pipe_file(f"/pool/{name}", data)
        (tmp_path / "pool").mkdir(exist_ok=True)
        (tmp_path / "pool" / name).write_bytes(data)

    yield put
    system.store.clear()


@pytest.fixture
def asked(store: object, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranges that were requested."""
    found: list[tuple[int, int]] = []
    system = fsspec.filesystem("memory")
    whole = system.cat_file

    def cat_file(path: str, start: int, end: int) -> bytes:
        found.append((start, end))
        return whole(path, start=start, end=end)

    monkeypatch.setattr(system, "cat_file", cat_file)
    return found


def same(uri: str, path: Path) -> None:
    """Both pools have the same images, names and labels."""
    far, near = (open_pool([text], image_size=16, channels=3) for text in (uri, str(path)))
    rows = np.arange(len(near))
    assert np.array_equal(far.images(rows).pixels, near.images(rows).pixels)
    assert far.origins(rows) == near.origins(rows)
    assert np.array_equal(far.labels(), near.labels())
    assert far.files(rows[::3]) == near.files(rows[::3])


def test_remote_tar__is_read_like_a_local_one(
    store: Callable, tmp_path: Path, patches: np.ndarray, encode: Callable
) -> None:
    for name in ("a", "b"):
        members = {f"{i}.png": encode(patches[i % 12]) for i in range(20)} | {f"{i}.cls": b"%d" % i for i in range(20)}
        store(f"{name}.tar", tar_of(members))
    same("memory://pool/a.tar", tmp_path / "pool" / "a.tar")
    same("memory://pool/{a,b}.tar", tmp_path / "pool" / "{a,b}.tar")
    same("memory://pool/*.tar", tmp_path / "pool" / "*.tar")
    pool = open_pool(["memory://pool/a.tar#png"], image_size=16, channels=3)
    assert pool.origins(np.array([3])) == ["a.tar/3.png"]


def test_find__names_files_as_they_were_given(
    store: Callable, tmp_path: Path, patches: np.ndarray, encode: Callable
) -> None:
    store("x.tar", tar_of({"0.png": encode(patches[0])}))
    folder = f"file://{tmp_path}/pool"
    assert folder.startswith("file:///")
    for text in (f"{folder}/x.tar", f"{folder}/*.tar"):
        assert [file.uri for file in remote.find(text, [text])] == [f"{folder}/x.tar"]
    assert remote.find("memory://pool/*.tar", ["memory://pool/*.tar"])[0].uri == "memory://pool/x.tar"
    with pytest.raises(RequestError, match=r"'file:///gone\.tar' does not exist"):
        open_pool(["file:///gone.tar"], image_size=16, channels=3)


def test_remote_parquet__is_read_like_a_local_one(
    store: Callable, tmp_path: Path, patches: np.ndarray, encode: Callable
) -> None:
    store("x.parquet", parquet_of([encode(patches[i % 12]) for i in range(25)]))
    same("memory://pool/x.parquet", tmp_path / "pool" / "x.parquet")


def test_remote_tar__is_read_with_few_requests(
    store: Callable, asked: list, patches: np.ndarray, encode: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "AHEAD", 4096)
    store("x.tar", tar_of({f"{i:03d}.png": encode(patches[i % 12]) for i in range(200)}))
    size = fsspec.filesystem("memory").info("/pool/x.tar")["size"]
    pool = open_pool(["memory://pool/x.tar"], image_size=16, channels=3)
    asked.clear()
    pool.images(np.arange(64, 128))
    assert len(asked) <= 2  # the first image of a batch alone, which tells the size; then all others
    assert sum(end - start for start, end in asked) < size / 2
    asked.clear()
    tar._recent_headers.cache_clear()
    open_pool(["memory://pool/x.tar"], image_size=16, channels=3)
    assert asked == [], "where the members lie is kept"


def test_remote_file__is_asked_for_again_where_the_connection_is_lost(
    store: Callable, patches: np.ndarray, encode: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    store("x.tar", tar_of({f"{i}.png": encode(patches[i]) for i in range(10)}))
    store("x.parquet", parquet_of([encode(patches[i]) for i in range(10)]))
    system, lost = fsspec.filesystem("memory"), []
    whole = system.cat_file

    def cat_file(path: str, start: int, end: int) -> bytes:
        lost.append(path)
        if len(lost) % remote.TRIES:
            raise ConnectionResetError("peer has gone")
        return whole(path, start=start, end=end)

    with monkeypatch.context() as patch:
        patch.setattr(system, "cat_file", cat_file)
        for name in ("x.tar", "x.parquet"):
            pool = open_pool([f"memory://pool/{name}"], image_size=16, channels=3)
            assert np.array_equal(pool.images(np.arange(10)).pixels, patches[:10])
    pools = [open_pool([f"memory://pool/{name}"], image_size=16, channels=3) for name in ("x.tar", "x.parquet")]

    def never(path: str, start: int, end: int) -> bytes:
        raise TimeoutError("no answer")

    monkeypatch.setattr(system, "cat_file", never)
    for pool, name in zip(pools, ("x.tar", "x.parquet"), strict=True):
        said = (
            rf"'memory://pool/{name}' cannot be read after 5 tries \(TimeoutError: no answer\); give the same command"
        )
        with pytest.raises(RequestError, match=said):
            pool.images(np.arange(10))


def test_remote_file__that_has_vanished_is_named(store: Callable, patches: np.ndarray, encode: Callable) -> None:
    store("x.tar", tar_of({f"{i}.png": encode(patches[i]) for i in range(10)}))
    store("x.parquet", parquet_of([encode(patches[i]) for i in range(10)]))
    for name in ("x.tar", "x.parquet"):
        pool = open_pool([f"memory://pool/{name}"], image_size=16, channels=3)
        fsspec.filesystem("memory").rm(f"/pool/{name}")
        with pytest.raises(RequestError, match=f"'memory://pool/{name}' does not exist, or not any more"):
            pool.images(np.arange(10))
        with pytest.raises(RequestError, match=f"'memory://pool/{name}' does not exist"):
            open_pool([f"memory://pool/{name}"], image_size=16, channels=3)


def test_remote_identity__changes_with_the_content(store: Callable, patches: np.ndarray, encode: Callable) -> None:
    def identity() -> object:
        return open_pool(["memory://pool/x.tar"], image_size=16, channels=3).identity

    store("x.tar", tar_of({"0.png": encode(patches[0])}))
    first = identity()
    assert identity() == first
    store("x.tar", tar_of({"0.png": encode(patches[1])}))
    assert identity() != first


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("memory://pool/x.npz", r"only \.tar and \.parquet are read from an object store; copy other files"),
        ("memory://pool/none*.tar", "no file matches 'memory://pool/none"),
        ("nothing://pool/x.tar", "does not name a file of an object store"),
        ("memory://pool/x.tar", "is not a whole uncompressed tar file"),
        ("memory://pool/x.parquet", "is not a whole Parquet file"),
    ],
)
def test_remote_pool__that_cannot_be_is_refused(store: Callable, uri: str, said: str) -> None:
    for name in ("x.npz", "x.tar", "x.parquet"):
        store(name, b"something else" * 100)
    with pytest.raises(RequestError, match=said):
        open_pool([uri], image_size=16, channels=3)


def test_remote_pool__without_its_package_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(uri: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(RequestError, match=r"'s3://bucket/x\.tar' needs another package: Install s3fs to access S3"):
        open_pool(["s3://bucket/x.tar"], image_size=16, channels=3)
