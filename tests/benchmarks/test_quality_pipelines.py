"""Pipelines of the quality benchmarks: each can be read, and its rows can be compared."""

import re
from pathlib import Path

import pytest

from dfkd.app.pipeline_file import read_pipeline

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "quality"
PIPELINES = sorted(file.name for file in FOLDER.glob("*.toml"))


@pytest.mark.parametrize("file", PIPELINES)
def test_rows__have_the_steps_of_their_names_and_one_batch_size(file, monkeypatch):
    for name in ("DFKD_DATA", "DFKD_TEACHERS", "DFKD_PHOTOS"):
        monkeypatch.setenv(name, name.lower())
    rows = read_pipeline(FOLDER / file).distillations
    named = {row.name: row.steps for row in rows if re.search(r"-\d+$", row.name)}
    assert named == {name: int(name.rsplit("-", 1)[1]) for name in named}
    assert len({row.batch_size for row in rows}) == 1


def test_resnet34__has_two_lengths_of_every_row_at_one_count():
    pipeline = read_pipeline(FOLDER / "resnet34.toml")
    rows = {row.name: row for row in pipeline.distillations}
    kinds = ("random-kd", "dfnd", "paper", "defaults")
    assert {*rows} == {f"{kind}-{steps}" for kind in kinds for steps in (500, 2000)}
    assert {selection.count for selection in pipeline.selections} == {50_000}
    assert rows["paper-500"].class_dropping == 0.05 and rows["defaults-500"].class_dropping == 0
