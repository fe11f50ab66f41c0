import json

import pytest

from dfkd.formats.manifest import write_manifest
from dfkd.select.journal import JOURNAL, Journal
from dfkd.system.checksums import entry


@pytest.fixture
def folder(tmp_path):
    """Three shards that an interrupted command has written."""
    journal = Journal(tmp_path, "aa")
    for number in range(3):
        path = tmp_path / f"data-{number:05d}.arrow"
        path.write_bytes(bytes([number]) * 10)
        journal.add({"name": path.name, "rows": 4, **entry(path)})
    return tmp_path


def names(journal):
    return [file.name for file in journal.done]


ALL = [f"data-{number:05d}.arrow" for number in range(3)]


def test_the_same_request_goes_on_behind_its_shards(folder):
    assert names(Journal(folder, "aa")) == ALL
    assert names(Journal(folder, "aa")) == ALL  # opening it again changes nothing
    assert names(Journal(folder, "bb")) == []
    assert names(Journal(folder, "aa")) == []  # the other one has begun anew


def test_it_goes_on_from_the_last_shard_that_is_whole(folder):
    (folder / ALL[2]).write_bytes(b"lost in a power cut")
    assert names(Journal(folder, "aa")) == ALL[:2]
    (folder / ALL[0]).unlink()
    assert names(Journal(folder, "aa")) == []


@pytest.mark.parametrize("end", ["cut off", "flipped"])
def test_a_damaged_line_ends_the_list(folder, end):
    lines = (folder / JOURNAL).read_text()
    broken = lines[:-20] if end == "cut off" else lines.replace('"rows": 4', '"rows": 5')
    (folder / JOURNAL).write_text(broken)
    assert names(Journal(folder, "aa")) == (ALL[:2] if end == "cut off" else [])


def test_a_folder_that_only_had_to_be_renamed_is_known_by_its_manifest(folder, manifest_of):
    files = [file.describe() for file in Journal(folder, "aa").done]
    write_manifest(folder, manifest_of(files, 2, 3, channels=1, fingerprint="aa"))
    (folder / JOURNAL).unlink()
    assert names(Journal(folder, "aa")) == ALL
    (folder / JOURNAL).unlink()
    assert names(Journal(folder, "bb")) == []
    (folder / JOURNAL).unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": "aa", "x": 1}))
    assert names(Journal(folder, "aa")) == []
