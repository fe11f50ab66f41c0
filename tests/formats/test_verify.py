import json

import numpy as np
import pytest
import tomli_w

from dfkd.formats.manifest import write_manifest
from dfkd.formats.run_records import RUN_FORMAT
from dfkd.formats.shards import Rows, Shards, write_shards
from dfkd.formats.verify import verify
from dfkd.system.checksums import entry, sealed
from dfkd.system.errors import RequestError


@pytest.fixture
def selection(tmp_path, rng, manifest_of):
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
    write_manifest(folder, manifest_of(files, 4, 3, channels=1))
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


def test_a_selection_of_another_format_is_refused_with_what_to_do(selection):
    path = selection / "manifest.json"
    table = json.loads(path.read_text())
    for other, said in ((1, "1"), (3, "3"), ("2", "'2'"), (True, "True")):
        path.write_text(json.dumps(sealed(table | {"format": other})))
        line = f"it has format {said}; this version of dfkd reads 2.; delete the folder and select again"
        with pytest.raises(RequestError, match=line):
            Shards(selection)
    del table["format"]
    path.write_text(json.dumps(sealed(table)))
    with pytest.raises(RequestError, match="it has no format"):
        verify(selection)


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


def test_an_unfinished_run_has_a_request_and_a_checkpoint(tmp_path):
    tables = {"format": RUN_FORMAT, "model": {"architecture": "lenet5"}, "content": {"seed": "0"}}
    (tmp_path / "config.toml").write_text(tomli_w.dumps(sealed(tables)))
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "state.pt").write_bytes(b"state")
    written = tmp_path / "checkpoint" / "progress.json"
    progress = {"format": RUN_FORMAT, "step": 3, "seconds": 1, "state": entry(tmp_path / "checkpoint" / "state.pt")}
    written.write_text(json.dumps(sealed(progress)))
    assert "3 files" in verify(tmp_path)
    (tmp_path / "checkpoint" / "state.pt").write_bytes(b"stale")
    with pytest.raises(RequestError, match=r"state.pt is damaged"):
        verify(tmp_path)
    written.write_text(json.dumps(sealed(progress) | {"step": 4}))
    with pytest.raises(RequestError, match=r"progress.json cannot be read \(its checksum differs"):
        verify(tmp_path)
    written.write_text(json.dumps(progress))
    with pytest.raises(RequestError, match=r"progress.json cannot be read \(it has no checksum"):
        verify(tmp_path)
    written.write_text(json.dumps(sealed(progress | {"format": 2})))
    with pytest.raises(RequestError, match=r"progress.json cannot be read \(it has format 2; this version"):
        verify(tmp_path)


def test_there_is_nothing_to_verify(tmp_path):
    with pytest.raises(RequestError, match="is not a selection, a run or a pipeline's folder"):
        verify(tmp_path)
