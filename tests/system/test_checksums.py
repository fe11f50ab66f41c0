import json

import pytest

from dfkd.system.checksums import CHECKSUM, Entry, check_file, check_size, entry, sealed, unsealed
from dfkd.system.errors import RequestError
from dfkd.system.records import parse


def test_a_table_that_is_not_what_was_written_is_seen():
    value = {"top1": 0.912345678901234, "steps": 8000, "names": ["a", "ü"], "nested": {"x": None, "y": 1e-5}}
    written = json.dumps(sealed(value))
    assert unsealed(json.loads(written)) == value
    with pytest.raises(ValueError, match="it has no checksum"):
        unsealed(value)
    assert sealed(sealed(value)) == sealed(value)
    for old, new in (("8000", "8001"), ("0.912345678901234", "0.912345678901235"), ('"y"', '"z"'), ("null", "0")):
        with pytest.raises(ValueError, match="checksum differs"):
            unsealed(json.loads(written.replace(old, new)))
    with pytest.raises(ValueError, match="it has no checksum"):
        unsealed(json.loads(written.replace("checksum", "checksul")))
    with pytest.raises(ValueError, match="not a table"):
        unsealed([1])
    with pytest.raises(ValueError, match="checksum differs"):
        unsealed(sealed(value) | {CHECKSUM: "0" * 16})


def test_a_file_that_is_not_what_was_written_is_named(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    written = parse(Entry, entry(path))
    assert check_file(path, written) == check_size(path, written) == 5
    path.write_bytes(b"12344")
    assert check_size(path, written) == 5
    with pytest.raises(RequestError, match=r"/x is damaged: its SHA-256 is not .* written; write it again"):
        check_file(path, written, "; write it again")
    path.write_bytes(b"1234")
    with pytest.raises(RequestError, match="/x is damaged: it has 4 bytes, 5 were written"):
        check_size(path, written)
    path.unlink()
    with pytest.raises(RequestError, match="/x cannot be read: No such file"):
        check_file(path, written)
