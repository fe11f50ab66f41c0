"""Selections and runs in an object store: fsspec's memory file system, which fails where a test says so."""

import json
import os
from contextlib import contextmanager, nullcontext

import fsspec
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dfkd.app import cli
from dfkd.formats.shards import Shards
from dfkd.models import cifar_resnet
from dfkd.system import remote, remote_folder
from dfkd.system.errors import RequestError
from dfkd.system.files import local_copy
from dfkd.system.remote_folder import folder_of, sent

OUT = "memory://bucket/made/some"


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.0)
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture
def select(tmp_path, monkeypatch):
    """Select a few images, with a cache that is named; the exit status."""
    torch.manual_seed(0)
    teacher = cifar_resnet(depth=8, width=2, in_channels=1, num_classes=3)
    save_file(teacher.state_dict(), tmp_path / "t.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "pool.npz", images=pixels)

    def run(out, *more, cache="cache"):
        monkeypatch.setenv("DFKD_CACHE", str(tmp_path / cache))
        network = f"cifar_resnet:depth=8,width=2,in_channels=1,num_classes=3@{tmp_path / 't.safetensors'}"
        given = ("--teacher", network, "--normalize", "none", "--image-size", "8", "--precision", "fp32")
        pool = ("--pool", str(tmp_path / "pool.npz"), "--method", "confidence", "--filter", "none")
        return cli.main(["select", *given, *pool, "--count", "9", "--out", str(out), *more])

    return run


def distill(tmp_path, out, *more, samples=OUT):
    network = f"cifar_resnet:depth=8,width=2,in_channels=1,num_classes=3@{tmp_path / 't.safetensors'}"
    given = ("--teacher", network, "--student", "cifar_resnet:depth=8,width=2", "--precision", "fp32", "--loss", "kd")
    quick = ("--steps", "2", "--batch-size", "4", "--init", "none")
    return cli.main(["distill", *given, *quick, "--samples", samples, "--out", str(out), *more])


def names(store, folder="/bucket/made/some"):
    return {name.removeprefix(f"{folder}/"): data for name, data in store.cat(store.find(folder)).items()}


def test_select__sends_the_bytes_of_a_selection_and_the_manifest_last(store, select, tmp_path, monkeypatch, capsys):
    order, pipe, put = [], store.pipe_file, store.put_file
    monkeypatch.setattr(store, "pipe_file", lambda path, *a, **k: (order.append(path), pipe(path, *a, **k)))
    monkeypatch.setattr(store, "put_file", lambda here, path, *a, **k: (order.append(path), put(here, path, *a, **k)))
    assert select(OUT) == 0
    assert select(tmp_path / "some") == 0
    want = {path.name: path.read_bytes() for path in (tmp_path / "some").iterdir()}
    assert names(store) == want
    assert order[-1].endswith("/manifest.json") and order[0].endswith("/incomplete.json")
    capsys.readouterr()
    assert select(OUT) == 0
    assert f"{OUT}: this selection is complete already" in capsys.readouterr().err


def test_select__on_another_machine_finds_what_is_complete_and_refuses_another_request(store, select, capsys):
    assert select(OUT) == 0
    before = names(store)
    capsys.readouterr()
    assert select(OUT, cache="another") == 0
    assert "is complete already" in capsys.readouterr().err
    assert select(OUT, "--seed", "1", cache="a-third") == 2
    assert f"--out {OUT} holds another selection: seed (0, now 1)" in capsys.readouterr().err.splitlines()[-1]
    assert names(store) == before


def test_select__that_was_cut_off_while_it_sent_goes_on(store, select, tmp_path, monkeypatch, capsys):
    put, sent = store.put_file, []

    def failing(here, path, *more, **options):
        if len(sent) == 2:
            raise ConnectionError("reset by peer")
        sent.append(path)
        return put(here, path, *more, **options)

    monkeypatch.setattr(store, "put_file", failing)
    assert select(OUT) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{OUT}/" in said and "cannot be written after 5 tries (ConnectionError: reset by peer)" in said
    assert "manifest.json" not in names(store)
    assert distill(tmp_path, tmp_path / "run") == 2, "a reader takes no half of it"
    assert "is not a complete selection or run: it has no manifest.json" in capsys.readouterr().err
    monkeypatch.setattr(store, "put_file", put)
    times = {name: store.modified(name) for name in sent}
    assert select(OUT) == 0
    assert {name: store.modified(name) for name in sent} == times, "what was sent is not sent again"
    assert len(Shards(local_copy(OUT))) == 9
    assert "incomplete.json" not in names(store)


def cut_off(monkeypatch, store, name):
    """Lose the connection at the file `name`, until the fixture is undone."""
    put, pipe = store.put_file, store.pipe_file

    def sending(path):
        if path.endswith(f"/{name}"):
            raise ConnectionError("reset by peer")

    monkeypatch.setattr(store, "put_file", lambda here, path, *a, **k: (sending(path), put(here, path, *a, **k)))
    monkeypatch.setattr(store, "pipe_file", lambda path, *a, **k: (sending(path), pipe(path, *a, **k)))


def test_send__of_another_version_keeps_no_file_of_one_that_was_cut_off(store, tmp_path, monkeypatch):
    """Two trainings give files of equal sizes. A file was taken for sent because one of its size was there."""
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path))
    run, folder = "memory://bucket/runs/kd", local_copy("memory://bucket/runs/kd")
    folder.mkdir(parents=True)
    for version, stops in (("a", "result.json"), ("b", "config.toml"), ("b", None)):
        with monkeypatch.context() as lost:
            if stops is not None:
                cut_off(lost, store, stops)
            with pytest.raises(RequestError, match="reset by peer") if stops else nullcontext(), sent(run, "run"):
                for name in ("config.toml", "student.safetensors", "result.json"):
                    (folder / name).write_text(version)
    assert names(store, "/bucket/runs/kd") == dict.fromkeys(("config.toml", "student.safetensors", "result.json"), b"b")


def test_send__of_a_result_that_is_measured_anew_leaves_the_run_whole_if_it_is_cut_off(store, tmp_path, monkeypatch):
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path))
    run, folder = "memory://bucket/runs/kd", local_copy("memory://bucket/runs/kd")
    folder.mkdir(parents=True)
    with sent(run, "run"):
        for name in ("config.toml", "student.safetensors", "result.json"):
            (folder / name).write_text("a")
    cut_off(monkeypatch, store, "config.toml")
    with pytest.raises(RequestError, match="reset by peer"), sent(run, "run"):
        (folder / "result.json").write_text("b")
    assert {**names(store, "/bucket/runs/kd"), "incomplete.json": b""} == {
        **dict.fromkeys(("config.toml", "student.safetensors", "result.json"), b"a"),
        "incomplete.json": b"",
    }


def test_folder_of__that_waits_for_another_command_takes_what_that_one_has_fetched(store, tmp_path, monkeypatch):
    """A second copy would remove the files that the other command reads."""
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path))
    store.pipe_file("/bucket/made/some/manifest.json", b"{}")
    store.pipe_file("/bucket/made/some/data-00000.arrow", b"images")
    locked, fetched = remote_folder.locked, []

    @contextmanager
    def waiting(*given, **options):
        if not fetched:
            fetched.append(True)
            fetched.append((folder_of(OUT) / "data-00000.arrow").open("rb"))
        with locked(*given, **options):
            yield

    monkeypatch.setattr(remote_folder, "locked", waiting)
    assert (folder_of(OUT) / "data-00000.arrow").samefile(fetched[1].name)
    with fetched[1] as file:
        assert os.fstat(file.fileno()).st_nlink == 1, "the file was removed"


def test_select__tries_a_lost_connection_again(store, select, monkeypatch):
    put, failed = store.put_file, []

    def flaky(here, path, *more, **options):
        if len(failed) < 3:
            failed.append(path)
            raise ConnectionError("reset by peer")
        return put(here, path, *more, **options)

    monkeypatch.setattr(store, "put_file", flaky)
    assert select(OUT) == 0
    assert len(failed) == 3 and "manifest.json" in names(store)


def test_select__names_a_bucket_that_is_not_there_before_it_works(store, select, monkeypatch, capsys):
    def pipe_file(path, data, **options):
        raise FileNotFoundError("The specified bucket does not exist")

    monkeypatch.setattr(store, "pipe_file", pipe_file)
    monkeypatch.setattr("dfkd.select.stage.select", None)  # is not reached
    assert select(OUT) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"'{OUT}/incomplete.json' cannot be written: The specified bucket does not exist" in said


def test_select__refuses_a_folder_of_other_files_and_leaves_none_of_its_own(store, select, capsys):
    store.pipe_file("/bucket/made/some/letter.txt", b"dear")
    assert select(OUT) == 2
    assert "holds something that is not complete or not of dfkd" in capsys.readouterr().err
    assert set(names(store)) == {"letter.txt"}
    assert select("memory://bucket/other", "--gamma", "2") == 2
    assert not store.find("/bucket/other")


def test_distill__reads_a_selection_of_the_store_and_sends_a_run_that_is_a_model(store, select, tmp_path, monkeypatch):
    assert select(OUT) == 0
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "another"))
    run = "memory://bucket/runs/kd"
    assert distill(tmp_path, run) == 0
    assert distill(tmp_path, tmp_path / "kd") == 0
    sent = names(store, "/bucket/runs/kd")
    assert sent["student.safetensors"] == (tmp_path / "kd" / "student.safetensors").read_bytes()
    assert {"result.json", "config.toml", "metrics.jsonl"} <= {*sent}
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "a-third"))
    pool = tmp_path / "labeled.npz"
    np.savez(pool, images=np.zeros((3, 8, 8, 1), np.uint8), labels=np.arange(3))
    assert cli.main(["evaluate", "--model", run, "--data", str(pool)]) == 0
    assert distill(tmp_path, run, "--test", str(pool)) == 0
    assert b'"top1": 0.33' in names(store, "/bucket/runs/kd")["result.json"], "a run that is measured anew is sent anew"
    assert cli.main(["inspect", OUT]) == 0


def test_run__of_the_store_or_below_the_home_is_a_run_wherever_a_model_is_named(
    store, select, tmp_path, monkeypatch, capsys
):
    assert select(OUT) == 0
    data, teacher = tmp_path / "labeled.npz", f"cifar_resnet:depth=8,width=2@{tmp_path / 't.safetensors'}"
    images = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    np.savez(data, images=images, labels=np.arange(40) % 3)
    run = "memory://bucket/runs/kd"
    assert distill(tmp_path, run) == distill(tmp_path, tmp_path / "kd") == 0
    monkeypatch.setenv("HOME", str(tmp_path))
    found = []
    for named in (str(tmp_path / "kd"), run, "~/kd"):
        flags = ("--teacher", teacher, "--data", str(data), "--precision", "fp32")
        assert cli.main(["evaluate", "--model", named, *flags, "--json", str(tmp_path / "f.json")]) == 0
        page = tmp_path / "page.html"
        assert cli.main(["explain", "--model", named, "--data", str(data), "--count", "0", "--out", str(page)]) == 0
        figures = json.loads((tmp_path / "f.json").read_text())
        found.append((figures["agreement"], figures["teacher_top1"], page.with_suffix(".csv").read_text()))
    assert found[0] == found[1] == found[2]  # the teacher sees the images with the normalization of the run
    out = str(tmp_path / "kd.pt2")
    assert cli.main(["export", "--model", run, "--samples", OUT, "--precision", "fp32", "--out", out]) == 0
    assert "on 3 images of the selection" in capsys.readouterr().err


def test_out__in_an_object_store_is_for_selections_and_runs_alone(store, tmp_path, capsys):
    assert cli.main(["demo", "--out", "memory://bucket/demo"]) == 2
    assert "dfkd demo writes to this machine" in capsys.readouterr().err
    given = ("--model", "lenet5", "--data", "x.npz", "--json", "memory://bucket/x.json")
    assert cli.main(["evaluate", *given]) == 2
    assert "--json memory://bucket/x.json is in an object store; name a file" in capsys.readouterr().err
    (tmp_path / "x.toml").write_text('out = "memory://bucket/all"\n')
    assert cli.main(["run", str(tmp_path / "x.toml")]) == 2
    assert "is in an object store" in capsys.readouterr().err


def test_folder_of__says_that_its_copy_cannot_be_written_and_names_no_option(store, tmp_path, monkeypatch):
    store.pipe_file("/bucket/made/some/manifest.json", b"{}")
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "cache"))
    with pytest.raises(RequestError, match=f"^the copy of {OUT} cannot be written to: {tmp_path / 'cache'}"):
        folder_of(OUT)
