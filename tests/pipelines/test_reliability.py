"""Commands that are interrupted, meet a full disk, another command or damaged files. Killing them at every file
operation is `benchmarks/reliability/kill.py`; a small part of it runs here."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfkd.distill.trainer import Trainer
from dfkd.formats import shards
from dfkd.models.classifier import Classifier
from dfkd.select import stage, stored_scores
from dfkd.system.errors import RequestError
from dfkd.system.locks import locked

ROOT = Path(__file__).parents[2]
QUICK = ("--steps", 12, "--batch-size", 16, "--checkpoint-every", 5, "--log-every", 3, "--init", "none", "--loss", "kd")


def tree(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def cached():
    return {path.name: path.read_bytes() for path in Path(os.environ["DFKD_CACHE"]).rglob("*.parquet")}


def flip(path, position=-200):
    data = bytearray(path.read_bytes())
    data[position] ^= 8
    path.write_bytes(data)


@pytest.fixture
def small_pieces(monkeypatch):
    """Several parts of scores and several shards."""
    monkeypatch.setattr(stored_scores, "PART_ROWS", 50)
    monkeypatch.setattr("dfkd.select.selection_writer.ROWS_PER_SHARD", 10)


@pytest.fixture(scope="module")
def one_run(lab, selection, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    assert lab.distill(selection, run, *QUICK) == 0
    return run


@pytest.fixture
def finished(one_run, tmp_path):
    """A run of the test's own, to damage."""
    return shutil.copytree(one_run, tmp_path / "run")


@pytest.mark.slow
def test_a_sample_of_all_kill_points_is_survived(tmp_path):
    """In a process of its own, that has started no threads: children are forked from it."""
    small = ("--kills", "2", "--share", "0.015", "--races", "1", "--flips", "0", "--disks", "0", "--seed", "7")
    small += ("--scenarios", "select-filtered", "distill")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.reliability.kill", tmp_path / "out.json", *small],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    for figures in json.loads((tmp_path / "out.json").read_text()).values():
        assert figures["tried"] == figures["survived"]
        assert {"killed", "error", "races"} <= figures["tried"].keys()


def test_the_figures_in_the_documentation_are_those_of_the_last_run():
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks.reliability.kill import table
    finally:
        sys.path.remove(str(ROOT))
    result = json.loads((ROOT / "benchmarks" / "reliability" / "results" / "kill.json").read_text())
    page = (ROOT / "docs" / "reliability.md").read_text()
    assert table(result) in page
    for figures in result.values():
        assert figures["command"].partition(" --scenarios")[0] in page
        assert figures["failures"] == []


@pytest.mark.parametrize(
    ("number", "status", "more"), [(signal.SIGINT, 130, ()), (signal.SIGTERM, 143, ("--deduplicate", 0.99))]
)
def test_a_scoring_that_is_interrupted_keeps_every_batch(
    lab, tmp_path, monkeypatch, capsys, small_pieces, number, status, more
):
    flags = ("--pool", lab.few, "--count", 25, "--batch-size", 6, *more)
    whole, forwards = Classifier.__call__, []

    def interrupted(self, pixels):
        forwards.append(len(pixels))
        if sum(forwards) > 80:
            os.kill(os.getpid(), number)
        return whole(self, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "__call__", interrupted)
        assert lab.select(tmp_path / "out", *flags) == status
    assert "the scores so far are kept; give the same command again to resume" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert "scores-000001.head.parquet" in cached()
    scored = sum(forwards)
    forwards.clear()
    monkeypatch.setattr(
        Classifier, "__call__", lambda self, pixels: (forwards.append(len(pixels)), whole(self, pixels))[1]
    )
    assert lab.select(tmp_path / "out", *flags) == 0
    assert scored + sum(forwards) == 120
    after = cached()
    assert not [name for name in after if "head" in name]
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "cache"))
    assert lab.select(tmp_path / "uninterrupted", *flags) == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "uninterrupted")
    assert after == cached()


@pytest.mark.parametrize(
    ("pool", "error", "status"), [("raw", KeyboardInterrupt, 130), ("files", RequestError("no answer just now"), 2)]
)
def test_a_selection_goes_on_behind_its_last_shard(lab, tmp_path, monkeypatch, small_pieces, pool, error, status):
    flags = ("--pool", lab.few, "--count", 36)
    if pool == "files":
        (tmp_path / "photos").mkdir()
        for i, image in enumerate(np.load(lab.pool)["images"][:60]):
            Image.fromarray(image[:, :, 0]).save(tmp_path / "photos" / f"{i:03d}.png")
        monkeypatch.setattr("dfkd.data.pool.ENCODED_ABOVE", 8)
        monkeypatch.setattr("dfkd.select.selection_writer.BYTES_PER_SHARD", 2000)
        flags = ("--pool", tmp_path / "photos", "--method", "random", "--count", 40)
    assert lab.select(tmp_path / "whole", *flags) == 0
    count = len(list((tmp_path / "whole").glob("*.arrow")))
    assert count > 3
    write, written = shards._write_arrow, []

    def killed(path, *arguments):
        if len(written) == 2:
            raise error
        written.append(path.name)
        write(path, *arguments)

    monkeypatch.setattr(shards, "_write_arrow", killed)
    assert lab.select(tmp_path / "out", *flags) == status
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(shards, "_write_arrow", lambda path, *a: (written.append(path.name), write(path, *a)))
    assert lab.select(tmp_path / "out", *flags) == 0
    assert written == [f"data-{number:05d}.arrow" for number in range(count)]
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def test_shards_of_another_request_are_not_gone_on_with(lab, tmp_path, monkeypatch, small_pieces):
    write = shards._write_arrow

    def killed(path, *arguments):
        if path.name == "data-00003.arrow":
            raise KeyboardInterrupt
        write(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_write_arrow", killed)
        few = ("--pool", lab.few)
        assert lab.select(tmp_path / "out", *few, "--count", 40) == 130
    assert lab.select(tmp_path / "out", *few, "--count", 15) == 0
    assert lab.select(tmp_path / "again", *few, "--count", 15) == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "again")


def test_what_may_not_be_read_is_not_called_damaged(lab, selection, finished, monkeypatch, capsys, tmp_path):
    read = Path.read_text

    def refused(path, *arguments, **options):
        if path.name in ("manifest.json", "result.json"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refused)
    commands = (
        ("evaluate", "--model", finished, "--data", lab.heldout),
        ("compare", finished, "--out", tmp_path / "report.html"),
        ("inspect", selection),
    )
    for command in commands:
        assert lab.dfkd(*command) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert "cannot be read: Permission denied" in said and "again" not in said


def test_a_damaged_part_of_the_score_cache_is_scored_again(lab, tmp_path, monkeypatch, capsys, small_pieces):
    flags = ("--pool", lab.few, "--count", 10, "--deduplicate", 0.999)
    assert lab.select(tmp_path / "whole", *flags) == 0
    folder = next(Path(os.environ["DFKD_CACHE"]).glob("scores/*"))
    (folder / "scores-000001.parquet").write_bytes((folder / "scores-000001.parquet").read_bytes()[:3000])
    assert lab.select(tmp_path / "out", *flags) == 0
    assert "1 of 3 cached parts are damaged and scored again" in capsys.readouterr().err
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    features = sorted(folder.glob("features-*.parquet"))[0]
    flip(features, 1000)
    assert lab.select(tmp_path / "third", *flags) == 2
    assert f"{features} is damaged" in capsys.readouterr().err
    features.unlink()
    assert lab.select(tmp_path / "third", *flags) == 0
    assert tree(tmp_path / "third") == tree(tmp_path / "whole")


def test_a_run_that_another_command_begins_at_this_moment_is_a_run(lab, selection, one_run, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()

    def looking(look):
        """After the first look into the folder the other command writes."""

        def first(path):
            found = look(path)
            found = found if isinstance(found, bool) else list(found)
            if run in (path, path.parent) and path.suffix != ".json" and not os.listdir(run):
                shutil.copytree(one_run, run, dirs_exist_ok=True)
            return found if isinstance(found, bool) else iter(found)

        return first

    monkeypatch.setattr(Path, "iterdir", looking(Path.iterdir))
    monkeypatch.setattr(Path, "exists", looking(Path.exists))
    assert lab.distill(selection, run, *QUICK) == 0


def test_two_commands_do_not_write_one_folder(lab, selection, tmp_path, capsys):
    with locked(tmp_path / "out.partial", "out"):
        assert lab.select(tmp_path / "out", "--count", 50) == 2
    with locked(tmp_path / "run", "run"):
        assert lab.distill(selection, tmp_path / "run", *QUICK) == 2
    said = capsys.readouterr().err.splitlines()
    for name in ("out", "run"):
        assert any(f"--out {tmp_path / name}: another command is writing this folder" in line for line in said)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_nothing_is_lost(lab, selection, tmp_path, monkeypatch, capsys):
    sync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    for command, done in ((lambda: lab.select(tmp_path / "out", "--pool", lab.few, "--count", 50), "manifest.json"),
                          (lambda: lab.distill(selection, tmp_path / "out", *QUICK), "result.json")):  # fmt: skip
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            assert command() == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert str(tmp_path) in line
        assert line.endswith(
            "the disk is full; make room and give the same command again: it continues from what is complete"
        )
        assert command() == 0
        assert (tmp_path / "out" / done).exists()
        (tmp_path / "out").rename(tmp_path / f"{done}-done")


def test_a_cache_that_cannot_be_written_is_named(lab, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "file" / "cache"))
    assert lab.select(tmp_path / "out", "--count", 50) == 2
    assert "cannot be written: File exists; set DFKD_CACHE to another folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["student.safetensors", "result.json", "config.toml", "metrics.jsonl"])
@pytest.mark.parametrize("how", ["flipped", "truncated"])
def test_a_damaged_run_is_refused(lab, finished, tmp_path, capsys, name, how):
    path = finished / name
    if how == "truncated":
        path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
    elif name in ("result.json", "config.toml"):
        old, new = ('"steps": 12', '"steps": 13') if name == "result.json" else ('"0.5/0.5"', '"0.4/0.5"')
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    else:
        flip(path)
    for command in (
        ("compare", finished, "--out", tmp_path / "report.html"),
        ("evaluate", "--model", finished, "--data", lab.heldout),
        ("inspect", finished, "--verify"),
    ):
        reads = {"compare": name != "student.safetensors", "evaluate": name != "metrics.jsonl", "inspect": True}
        assert lab.dfkd(*command) == (2 if reads[command[0]] else 0)
        line = capsys.readouterr().err.splitlines()[-1]
        assert name in line if reads[command[0]] else "is damaged" not in line


@pytest.mark.parametrize("name", ["state.pt", "progress.json"])
def test_a_flipped_bit_in_a_checkpoint_is_named(lab, selection, tmp_path, capsys, monkeypatch, name):
    step = Trainer.advance
    monkeypatch.setattr(Trainer, "advance", lambda self: exit() if self.step == 8 else step(self))
    with pytest.raises(SystemExit):
        lab.distill(selection, tmp_path / "run", *QUICK)
    path = tmp_path / "run" / "checkpoint" / name
    if name == "state.pt":
        flip(path, path.stat().st_size // 2)
    else:
        path.write_text(path.read_text().replace('"step": 5', '"step": 4'))
    assert lab.distill(selection, tmp_path / "run", *QUICK) == 2
    assert "checkpoint is damaged" in capsys.readouterr().err
    assert lab.dfkd("inspect", tmp_path / "run", "--verify") == 2
    (tmp_path / "run" / "checkpoint").rename(tmp_path / "away")
    monkeypatch.setattr(Trainer, "advance", step)
    assert lab.distill(selection, tmp_path / "run", *QUICK) == 0  # as the message says: it starts anew
    assert lab.dfkd("inspect", tmp_path / "run", "--verify") == 0


def test_the_last_step_can_be_interrupted_too(lab, selection, tmp_path, monkeypatch, capsys):
    step = Trainer.advance

    def interrupted(self):
        if self.step == 11:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", interrupted)
        assert lab.distill(selection, tmp_path / "run", *QUICK) == 130
    assert "step 12 is saved" in capsys.readouterr().err
    monkeypatch.setattr(Trainer, "advance", lambda self: pytest.fail("a step was made"))
    assert lab.distill(selection, tmp_path / "run", *QUICK) == 0


def test_a_checkpoint_between_its_two_renames_is_found_and_put_back(lab, selection, one_run, tmp_path, monkeypatch):
    step = Trainer.advance
    monkeypatch.setattr(Trainer, "advance", lambda self: exit() if self.step == 8 else step(self))
    with pytest.raises(SystemExit):
        lab.distill(selection, tmp_path / "run", *QUICK)
    (tmp_path / "run" / "checkpoint").rename(tmp_path / "run" / "checkpoint.old")
    monkeypatch.setattr(Trainer, "advance", lambda self: exit() if self.step == 8 else step(self))
    with pytest.raises(SystemExit):
        lab.distill(selection, tmp_path / "run", *QUICK)
    assert json.loads((tmp_path / "run" / "checkpoint" / "progress.json").read_text())["step"] == 5
    monkeypatch.setattr(Trainer, "advance", step)
    assert lab.distill(selection, tmp_path / "run", *QUICK) == 0
    assert not (tmp_path / "run" / "checkpoint.old").exists()
    name = "student.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (one_run / name).read_bytes()


def test_files_of_others_are_left_alone(lab, selection, tmp_path, capsys):
    """What ends like our temporary files need not be one."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "film.partial").write_text("half a film")
    assert lab.distill(selection, tmp_path / "mine", *QUICK) == 2
    (tmp_path / "mine.partial").mkdir()
    (tmp_path / "mine.partial" / "letter.txt").write_text("mine")
    assert lab.select(tmp_path / "mine.other", "--pool", lab.few, "--count", 50) == 0
    (tmp_path / "mine" / "film.partial").rename(tmp_path / "film.partial")
    (tmp_path / "mine").rmdir()
    assert lab.select(tmp_path / "mine", "--count", 50) == 2
    assert "is the temporary folder of --out and has another file, 'letter.txt'; move it" in capsys.readouterr().err
    assert (tmp_path / "mine.partial" / "letter.txt").read_text() == "mine"


def test_a_pool_file_that_vanished_is_named(lab, tmp_path, monkeypatch, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = np.load(lab.pool)["images"][:40]
    rows = pa.array([image.tolist() for image in images], pa.list_(pa.list_(pa.list_(pa.uint8()))))
    pq.write_table(pa.table({"image": rows}), tmp_path / "pool.parquet", row_group_size=10)
    choose = stage.choose
    monkeypatch.setattr(stage, "choose", lambda *a, **k: ((tmp_path / "pool.parquet").unlink(), choose(*a, **k))[1])
    assert lab.select(tmp_path / "out", "--pool", tmp_path / "pool.parquet", "--method", "random") == 2
    said = capsys.readouterr().err
    assert "pool.parquet" in said and "No such file or directory" in said
    assert not (tmp_path / "out").exists()
