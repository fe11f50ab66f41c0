import errno
import os
from contextlib import nullcontext

import pytest

from dfkd.system import files


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.replacing(path) as partial:
        partial.write_text("new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_of_several_writers_the_first_ones_file_holds(tmp_path):
    path = tmp_path / "a.txt"
    with files.replacing(path, first=True) as late:
        late.write_text("second")
        files.write_text(path, "first", first=True)
    assert path.read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(("number", "goes_on"), [(errno.EPERM, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_where_no_file_can_have_two_names_the_last_ones_holds(tmp_path, monkeypatch, number, goes_on):
    def refuse(*names):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with nullcontext() if goes_on else pytest.raises(OSError):
        files.write_text(tmp_path / "a.txt", "text", first=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] * goes_on


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_folder_is_replaced_and_found_at_every_moment(tmp_path):
    final = tmp_path / "checkpoint"
    assert files.current_folder(final) is None
    for text in ("first", "second"):
        partial = tmp_path / "checkpoint.partial"
        partial.mkdir()
        (partial / "x").write_text(text)
        files.replace_folder(partial, final)
        assert (files.current_folder(final) / "x").read_text() == text
    final.rename(tmp_path / "checkpoint.old")  # killed between the two renames
    assert (files.current_folder(final) / "x").read_text() == "second"


def test_hash_of_ignores_order_and_sees_values():
    assert files.hash_of({"a": 1, "b": [2]}) == files.hash_of({"b": [2], "a": 1})
    assert files.hash_of({"a": 1}) != files.hash_of({"a": 2})


def test_output_path__of_the_root_is_a_path_as_any_other():
    assert files.output_path("/") == files.Path("/")


def test_a_user_without_a_home_needs_a_cache_of_another_name(monkeypatch, tmp_path):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(files.Path, "home", homeless)
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path))
    assert files.cache_folder() == tmp_path
    monkeypatch.delenv("DFKD_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(files.RequestError, match="no home folder for the cache; set DFKD_CACHE to another folder"):
        files.cache_folder()
