"""The script of the GPU's half hour, at two steps a stage."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dfkd.distill.trainer import Trainer

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "quality" / "headline.sh"
SIZES = {
    "TEACHER": "cifar_resnet:depth=8,width=8",
    "STUDENT": "cifar_resnet:depth=8,width=4",
    "TEACHER_EPOCHS": 1,
    "EPOCHS": 1,
    "SHORT_EPOCHS": 1,
    "COUNT": 28,  # the most that `paper` selects of 40
    "BATCH": 16,
    "LR": 0.01,
    "MINUTES": 0,
}


@pytest.fixture
def sizes(data, tmp_path, monkeypatch):
    """The environment of a small run; its folder of results."""
    places = {"HEADLINE_WORK": tmp_path / "work", "OUT": tmp_path / "out", "DFKD_DATA": data, "PYTHON": sys.executable}
    for name, value in {**{f"HEADLINE_{name}": size for name, size in SIZES.items()}, **places}.items():
        monkeypatch.setenv(name, str(value))
    return tmp_path / "out"


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_script_from_nothing_to_its_results_and_once_more(sizes, script, monkeypatch):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (first,) = rows(sizes / "headline-short.csv")
    assert (first["name"], first["steps"], first["test_images"]) == ("defaults", "2", "20")
    assert json.loads((sizes / "headline-short.json").read_text())["command"] == "benchmarks/quality/headline.sh"
    teacher = json.loads((sizes / "headline-teacher.json").read_text())
    assert teacher["steps"] == 4 and teacher["top1"] == float(first["teacher_top1"])
    stages = rows(sizes / "headline-times.csv")
    assert [(stage["stage"], stage["status"]) for stage in stages] == [("teacher", "0"), ("first", "0")]
    assert all(float(stage["seconds"]) > 0 for stage in stages)
    assert "the long run is left out: 0 s allow 0 passes" in (sizes / "headline.log").read_text()

    headline = script("headline")
    monkeypatch.setenv("HEADLINE_MINUTES", "9")
    monkeypatch.setenv("HEADLINE_EPOCHS", "2")
    monkeypatch.setattr(headline, "SHORT_SEEDS", [0])
    trained = []
    advance = Trainer.advance
    monkeypatch.setattr(Trainer, "advance", lambda self: trained.append(self.step) or advance(self))
    assert headline.main() == 0
    # neither teacher nor first student again: the long run's 4 steps, and 2 of every other row
    assert trained == [0, 1, 2, 3] + [0, 1] * (len(headline.SHORT) - 1)
    (student,) = rows(sizes / "headline.csv")
    assert (student["name"], student["steps"]) == ("defaults", "4")
    short = rows(sizes / "headline-short.csv")
    assert {row["name"] for row in short} == set(headline.SHORT) and {row["steps"] for row in short} == {"2"}


def test_as_many_passes_as_the_time_allows_and_those_that_were_begun(sizes, script, tmp_path):
    headline = script("headline")
    (name,) = headline.MAIN
    run = tmp_path / "short" / "runs" / f"{name}-seed0"
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps({"seconds": 10.0}))
    student = tmp_path / "student"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADLINE_SHORT_EPOCHS", "20")  # half a second a pass
        patch.setenv("HEADLINE_EPOCHS", "200")
        assert headline.passes(student, tmp_path / "short", headline.LAST + 60) == 60 * 2 * headline.SAFE
        assert headline.passes(student, tmp_path / "short", 3600) == 200
        assert headline.passes(student, tmp_path / "short", 0) < 0
        student.with_suffix(".toml").write_text("[distill.defaults]\nepochs = 77\n")
        assert headline.passes(student, tmp_path / "short", 3600) == 77


def test_when_the_time_is_up_the_rows_that_are_complete_are_kept(sizes, script, monkeypatch):
    headline = script("headline")
    endless = {"samples": ["random"], "loss": ["kd"], "epochs": 1_000_000}
    monkeypatch.setattr(headline, "SHORT", {**headline.MAIN, "endless": endless})
    monkeypatch.setattr(headline, "SHORT_SEEDS", [0])
    monkeypatch.setenv("HEADLINE_MINUTES", "9")
    tells = []

    class Timer:
        def __init__(self, seconds, tell):
            assert 0 < seconds <= 9 * 60
            tells.append(tell)

        def start(self):
            pass

        def cancel(self):
            pass

    def advance(self):
        if self.plan.steps > 1000 and self.step == 2:
            tells[-1]()
        return own(self)

    own = Trainer.advance
    monkeypatch.setattr(headline.threading, "Timer", Timer)
    monkeypatch.setattr(Trainer, "advance", advance)
    assert headline.main() == 0
    assert [row["name"] for row in rows(sizes / "headline-short.csv")] == [*headline.MAIN]
    assert rows(sizes / "headline-times.csv")[-1]["status"] == "143"


def test_a_stage_that_fails_ends_the_script_with_its_status(sizes, script, monkeypatch, capsys):
    monkeypatch.setenv("HEADLINE_TEACHER", "no_such_network")
    assert script("headline").main() == 2
    assert "no_such_network" in capsys.readouterr().err
    assert [stage["status"] for stage in rows(sizes / "headline-times.csv")] == ["2"]
