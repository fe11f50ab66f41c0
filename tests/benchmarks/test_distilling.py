"""A step of `distill` against bare loops, with small networks on a few images."""

import json
import sys
import time

import torch

from dfkd.models import cifar_resnet


def processor_seconds(function):
    """The processor time of a call, which other processes on the machine hardly change."""
    started = time.process_time()
    function()
    return time.process_time() - started


def test_rows_for_losses_and_for_kept_answers(tmp_path, data, script, monkeypatch):
    torch.save(cifar_resnet(14, width=8).state_dict(), tmp_path / "teacher.pt")
    distilling = script("distilling", "speed")
    monkeypatch.setattr(distilling, "TEACHER", "cifar_resnet:depth=14,width=8@{}/teacher.pt")
    monkeypatch.setattr(distilling, "STUDENT", "cifar_resnet:depth=8,width=4")
    monkeypatch.setattr(distilling, "ROUNDS", 1)
    monkeypatch.setattr(distilling, "seconds", processor_seconds)
    monkeypatch.setenv("DFKD_DATA", str(data))
    monkeypatch.setenv("DFKD_TEACHERS", str(tmp_path))
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "cache"))  # the script sets its own: back to this one afterwards
    monkeypatch.setattr(sys, "argv", ["distilling.py", str(tmp_path / "distilling.json"), "2"])
    distilling.main()
    rows = {row["what"]: row for row in json.loads((tmp_path / "distilling.json").read_text())["rows"]}
    assert len(rows) == 7
    assert all(row["dfkd"] > 0 < row["bare"] and len(row["ratios"]) == 1 for row in rows.values())
    # what runs no teacher is faster than what does: the teacher has most of the arithmetic
    kept, with_maps = (rows[f"distill {name}, against a step of kd"] for name in ("kd, kept answers", "kd ofd"))
    assert kept["ratio"] > with_maps["ratio"]


def test_rows_for_photographs(tmp_path, data, script, monkeypatch):
    distilling = script("distilling", "speed")
    monkeypatch.setattr(distilling, "PHOTO_NETWORKS", ("ratios.Strided",))
    monkeypatch.setattr(distilling, "SIDE", 72)
    monkeypatch.setattr(distilling, "PHOTO_BATCH", 4)
    monkeypatch.setattr(distilling, "ROUNDS", 1)
    monkeypatch.setenv("DFKD_DATA", str(data))
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["distilling.py", str(tmp_path / "photos.json"), "2", "photos"])
    distilling.main()
    step, *others = json.loads((tmp_path / "photos.json").read_text())["rows"]
    assert step["bare"] <= min(step["bare_alone"], step["decoding_alone"]) + 0.01
    assert [row["what"].split(", ", 1)[1] for row in others] == [
        "ratios.Strided, against a DataLoader",
        "ratios.Strided, views alone, against decoding",
        "ratios.Strided, views alone, against a DataLoader",
    ]
    assert all(row["dfkd"] > 0 < row["bare"] for row in others)
