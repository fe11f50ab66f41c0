"""What loggers write is read back with their own libraries."""

import json
import struct
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from dfkd.formats.run_folder import Progress
from dfkd.system.errors import RequestError
from dfkd.training import log
from dfkd.training.log import Log, check_loggers, grid, logged
from dfkd.training.loggers.base import Training

OPTIONS = {"loss": ["kd", "ofd"], "steps": 4, "test": None}
STEPS = 4
FIRST, RESUMED = (1, 2, 3), (3, 4)
"""A command that is stopped after its checkpoint at step 2, and the one that goes on from there."""


def needs(module):
    return pytest.mark.skipif(find_spec(module) is None, reason=f"{module} is not installed")


def pictures():
    return {"batch": np.full((3, 4, 4, 3), 200, np.uint8)}


def row(step):
    return {"step": step, "loss": 1.0 / step, "kd": 2.0 / step, "agreement": 0.5, "source.loss": 3.0}


def train(folder, name, steps, *, end=False):
    """Record rows as the loop does."""
    record = Progress(folder, "")
    with logged([name], record, folder, OPTIONS, (STEPS, 1), pictures) as follower:
        for step in steps:
            record.log(row(step))
        if end:
            follower.result({"top1": 0.75, "name": "kd|ofd", "per_class": [0.5, 1.0], "top5": None})


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@needs("tensorboard")
def test_tensorboard__has_one_curve_over_an_interruption(run):
    train(run, "tensorboard", FIRST)
    train(run, "tensorboard", RESUMED, end=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(run / "logs" / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"loss/total", "loss/kd", "loss/source.loss", "agreement", "result/top1"} == {*tags["scalars"]}
    curve = events.Scalars("loss/kd")
    assert [event.step for event in curve] == [1, 2, 3, 4]
    assert [event.value for event in curve] == pytest.approx([2 / step for step in (1, 2, 3, 4)])
    shown = events.Images("images/batch")
    assert [image.step for image in shown] == [1, 2, 3, 4] and {(image.width, image.height) for image in shown} == {
        (8, 8)
    }
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags["tensors"]}
    assert "| loss | kd, ofd |" in texts["options/text_summary"]
    assert "| name | kd\\|ofd |" in texts["result/text_summary"]
    assert events.Scalars("result/top1")[0].value == 0.75


@needs("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_mlflow__has_one_curve_over_an_interruption(run, monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
        monkeypatch.delenv(name)
    train(run, "mlflow", FIRST)
    train(run, "mlflow", RESUMED, end=True)
    from mlflow.tracking import MlflowClient

    client = MlflowClient((run.parent / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("dfkd")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "run" and found.info.status == "FINISHED"
    curve = client.get_metric_history(found.info.run_id, "loss/kd")
    assert [(metric.step, metric.value) for metric in curve] == [(step, 2 / step) for step in (1, 2, 3, 4)]
    assert found.data.params["loss"] == "kd, ofd" and found.data.metrics["result/top1"] == 0.75
    files = [file.path for file in client.list_artifacts(found.info.run_id, "images")]
    assert files == [f"images/batch-{step:07d}.png" for step in (1, 2, 3, 4)]


def test_pictures__are_files_once_for_each_step_over_an_interruption(run):
    train(run, "pictures", FIRST)
    (run / "logs" / "pictures" / "0000003-batch.png").write_bytes(b"half")
    train(run, "pictures", RESUMED, end=True)
    files = sorted((run / "logs" / "pictures").iterdir())
    assert [file.name for file in files] == [f"{step:07d}-batch.png" for step in (1, 2, 3, 4)]
    for file in files:
        with Image.open(file) as image:
            assert np.array_equal(np.asarray(image), grid(pictures()["batch"]))


def stored_records(data):
    """The records of an offline run: after 7 bytes, blocks of LevelDB's log format."""
    at, parts = 7, b""
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:  # no header fits: padding
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


@needs("wandb")
@pytest.mark.filterwarnings("ignore")
def test_wandb__has_one_run_over_an_interruption(run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(run, "wandb", FIRST)
    train(run, "wandb", RESUMED, end=True)
    from wandb.proto import wandb_internal_pb2

    seen, runs, config = [], set(), {}
    for file in sorted((run / "logs" / "wandb").glob("offline-run-*/*.wandb")):
        for data in stored_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                runs.add(record.run.run_id)
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.HasField("history"):
                items = {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item}
                seen += [(items["_step"], items["loss/kd"], "images/batch" in items)] if "loss/kd" in items else []
    assert runs == {json.loads((run / "logs" / "wandb.json").read_text())["id"]}
    assert {(step, value) for step, value, _ in seen} == {(step, 2 / step) for step in (1, 2, 3, 4)}
    assert all(pictured for _, _, pictured in seen)
    assert config["loss"] == ["kd", "ofd"]


def test_check_loggers__names_the_extra(monkeypatch):
    monkeypatch.setattr(log, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"--log mlflow needs mlflow: pip install '\.\[mlflow\]'"):
        check_loggers(["mlflow"])


class Broken:
    needs = "os"

    def __init__(self, training, step):
        self.rows = 0

    def scalars(self, step, row):
        raise OSError("no space\nleft")

    def close(self):
        raise AssertionError("it was left out")


def test_log__a_logger_that_fails_is_told_once_and_left_out(run, monkeypatch, capsys):
    monkeypatch.setattr(log, "_logger", lambda name: Broken)
    train(run, "wandb", (1, 2))
    assert capsys.readouterr().err.count("warning: --log wandb fails and is left out (OSError: no space)") == 1
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2


class Kept(Broken):
    steps: list[int] = []  # noqa: RUF012

    def scalars(self, step, row):
        pass

    def image(self, step, name, pixels):
        self.steps.append(step)

    def close(self):
        pass


@pytest.mark.parametrize("begin", [0, 500])
def test_log__has_some_20_pictures_whatever_the_length(run, monkeypatch, begin):
    monkeypatch.setattr(log, "_logger", lambda name: Kept)
    Kept.steps = []
    told = Log(["wandb"], Training(run, "run", {}), 2000, 50, pictures)
    for step in range(begin + 50, 2001, 50):
        told.row({"step": step, "loss": 1.0})
    due = [50, *range(100, 2001, 100)]
    assert Kept.steps == [step for step in due if step > begin]


def test_log__without_rows_opens_nothing(run, monkeypatch):
    monkeypatch.setattr(log, "_logger", lambda name: pytest.fail("opened"))
    Log(["wandb"], Training(run, "run", {}), 10, 1, pictures).close()


def test_grid__puts_images_side_by_side():
    images = np.stack([np.full((2, 3, 1), value, np.uint8) for value in (1, 2, 3)])
    sheet = grid(images)[..., 0]
    assert sheet.shape == (4, 6)
    assert [int(sheet[y, x]) for y, x in ((0, 0), (0, 3), (2, 0), (2, 3))] == [1, 2, 3, 0]
