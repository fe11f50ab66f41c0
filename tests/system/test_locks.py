import errno
import fcntl
import os
import subprocess
import sys
import threading

import pytest

from dfkd.system.errors import RequestError
from dfkd.system.locks import LOCK, Busy, is_held, locked

HOLDER = """
import os, sys
from pathlib import Path
from dfkd.system.locks import locked
with locked(Path(sys.argv[1]), "--out out"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_command_is_refused_until_the_first_has_ended_however_it_ends(tmp_path):
    folder = tmp_path / "deep" / "out"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(RequestError, match="--out out: another command is writing this folder"),
        locked(folder, "--out out"),
    ):
        pass
    holder.kill()
    holder.communicate()
    assert (folder / LOCK).exists()
    with locked(folder, "--out out"):  # the lock died with its process
        (folder / "work").write_text("x")
    assert os.listdir(folder) == ["work"]


def test_whether_a_folder_is_held_is_seen_without_disturbing_anybody(tmp_path):
    assert not is_held(tmp_path / "nowhere")
    with locked(tmp_path / "out", "--out out"):
        assert is_held(tmp_path / "out")
        with pytest.raises(Busy), locked(tmp_path / "out", "--out out"):
            pass
    (tmp_path / LOCK).touch()  # of a command that was killed
    assert not is_held(tmp_path)
    with locked(tmp_path, "--out out"):
        pass


def test_who_only_looks_is_waited_for(tmp_path, monkeypatch):
    (tmp_path / LOCK).touch()
    looking = os.open(tmp_path / LOCK, os.O_RDWR)
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr("time.sleep", lambda seconds: os.close(looking))
    with locked(tmp_path, "--out out"):
        assert is_held(tmp_path)


def test_a_command_that_waits_gets_the_folder_at_the_others_end(tmp_path):
    order = []

    def second():
        with locked(tmp_path, "--out out", wait=True):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(tmp_path, "--out out"):
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_folder_that_stayed_empty_is_removed(tmp_path):
    with locked(tmp_path / "out", "--out out"):
        assert (tmp_path / "out" / LOCK).exists()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_renamed_while_it_is_held_leaves_the_next_ones_lock_alone(tmp_path):
    partial = tmp_path / "out.partial"
    with locked(partial, "--out out"):
        partial.rename(tmp_path / "out")
        with locked(partial, "--out out"):  # another command makes it anew
            pass
        partial.mkdir()
        (partial / LOCK).write_text("of another command")
    assert (partial / LOCK).read_text() == "of another command"


def test_the_file_of_the_last_holder_is_not_mistaken_for_the_lock(tmp_path, monkeypatch):
    """The other command removes its lock between our opening and our locking it."""
    opened = os.open
    seen = []

    def vanishing(path, *arguments, **more):
        handle = opened(path, *arguments, **more)
        if str(path).endswith(LOCK) and not seen:
            seen.append(path)
            os.unlink(path)
        return handle

    monkeypatch.setattr(os, "open", vanishing)
    with locked(tmp_path / "out", "--out out"):
        assert seen and (tmp_path / "out" / LOCK).exists()


def test_a_read_only_folder_is_named(tmp_path, monkeypatch):
    def read_only(path, *arguments, **more):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "open", read_only)
    (tmp_path / "out").mkdir()
    said = r"--out out cannot be written to: .*out/\.lock: Read-only file system"
    with pytest.raises(RequestError, match=said), locked(tmp_path / "out", "--out out"):
        pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    import fcntl

    def none(handle, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with locked(tmp_path / "out", "--out out"):
        pass
    assert "has no locks" in capsys.readouterr().err
