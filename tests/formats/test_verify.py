import json

import numpy as np
import pytest

from dfkd.formats.manifest import write_manifest
from dfkd.formats.shards import Rows, Shards, write_shards
from dfkd.formats.verify import verify
from dfkd.system.checksums import sealed
from dfkd.system.errors import RequestError


@pytest.fixture
def selection(tmp_path, rng):
    rows = Rows(
        image=rng.integers(0, 256, (6, 4, 4, 1), dtype=np.uint8),
        source=[f"pool#{i}" for i in range(6)],
        prediction=np.zeros(6, np.int64),
        confidence=rng.random(6),
        entropy=rng.random(6),
        logits=rng.normal(size=(6, 3)),
        kept_classes=np.ones((6, 3), dtype=bool),
    )
    folder = tmp_path / "out" / "samples" / "a-seed0"
    files = write_shards(folder, [rows], "0" * 16)
    (folder / "scores.parquet").write_bytes(b"scores")
    image = {"encoded": False, "size": 4, "channels": 1}
    write_manifest(folder, {"files": files, "image": image, "classes": 3, "content": {}, "fingerprint": "0" * 16})
    return folder


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


def test_a_whole_selection_is_read_and_counted(selection):
    size = sum(path.stat().st_size for path in selection.iterdir())
    assert verify(selection) == f"{selection}: 5 files, {size:,} bytes, as they were written"
    assert "5 files" in verify(selection.parents[1])  # a pipeline's folder


@pytest.mark.parametrize("name", ["data-00000.arrow", "scores.parquet", "state.json", "dataset_info.json"])
def test_a_flipped_bit_anywhere_is_named(selection, name):
    flip(selection / name, 3)
    with pytest.raises(RequestError, match=f"1 of 5 files in .* are not what was written: .*{name} is damaged"):
        verify(selection)


def test_a_changed_manifest_is_named(selection):
    path = selection / "manifest.json"
    path.write_text(path.read_text().replace('"classes": 3', '"classes": 2'))
    for reader in (verify, Shards):
        with pytest.raises(RequestError, match=r"manifest.json cannot be read \(its checksum differs"):
            reader(selection)


def test_a_selection_of_format_1_opens_and_says_what_is_not_compared(selection):
    path = selection / "manifest.json"
    old = json.loads(path.read_text()) | {"format": 1}
    del old["checksum"], old["beside"], old["files"][0]["bytes"]
    path.write_text(json.dumps(old))
    assert len(Shards(selection)) == 6
    assert verify(selection).endswith("by an older version, and not compared: manifest.json")
    flip(selection / "data-00000.arrow", -300)
    with pytest.raises(RequestError, match=r"data-00000.arrow is damaged"):
        Shards(selection)


def test_large_selections_are_not_hashed_when_they_are_opened(selection, monkeypatch):
    from dfkd.formats import shards

    flip(selection / "data-00000.arrow", -300)
    with pytest.raises(RequestError, match=r"data-00000.arrow is damaged: its SHA-256"):
        Shards(selection)
    monkeypatch.setattr(shards, "HASHED_WHEN_OPENED", 100)
    Shards(selection)
    with (selection / "data-00000.arrow").open("ab") as file:
        file.write(b"x")
    with pytest.raises(RequestError, match=r"data-00000.arrow is damaged: it has .* bytes"):
        Shards(selection)


def test_an_unfinished_run_of_an_older_version(tmp_path):
    (tmp_path / "config.toml").write_text('[content]\nseed = "0"\n')
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "state.pt").write_bytes(b"state")
    (tmp_path / "checkpoint" / "progress.json").write_text('{"step": 3}')
    assert "3 files" in verify(tmp_path)
    assert verify(tmp_path).endswith("not compared: config.toml, progress.json, state.pt")
    progress = sealed({"step": 3, "state": {"bytes": 5, "sha256": "0" * 64}})
    (tmp_path / "checkpoint" / "progress.json").write_text(json.dumps(progress))
    with pytest.raises(RequestError, match=r"state.pt is damaged"):
        verify(tmp_path)
    (tmp_path / "checkpoint" / "progress.json").write_text(json.dumps(progress | {"step": 4}))
    with pytest.raises(RequestError, match=r"progress.json is damaged: its checksum differs"):
        verify(tmp_path)


def test_there_is_nothing_to_verify(tmp_path):
    with pytest.raises(RequestError, match="is no selection, no run and no pipeline's folder"):
        verify(tmp_path)
