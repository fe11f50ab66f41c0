"""`select` against bare loops and a DataLoader, on a few images, with small teachers and one round."""

import json
import sys


def test_rows_for_raw_pools_and_for_jpegs(tmp_path, data, small_teachers, script, monkeypatch):
    selecting = script("selecting", "speed")
    monkeypatch.setattr(selecting, "RAW", small_teachers)
    monkeypatch.setattr(selecting, "PHOTOS", {"ratios.Strided": 72})
    monkeypatch.setattr(selecting, "ROUNDS", 1)
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "cache"))  # the script sets its own: back to this one afterwards
    monkeypatch.setenv("DFKD_DATA", str(data))
    monkeypatch.setattr(sys, "argv", ["selecting.py", str(tmp_path / "selecting.json"), "20", "6"])
    selecting.main()
    *raw, jpeg, loaded = json.loads((tmp_path / "selecting.json").read_text())["rows"]
    assert [row["what"].split(",")[1].strip() for row in raw] == ["one", "two"]
    for row in (*raw, jpeg):
        assert 0 < row["dfkd"] < row["bare"]  # so few images pay for the rest of the command
        assert row["ratios"] == [row["ratio"]] and row["ratio"] < 1
    assert loaded["dfkd"] == jpeg["dfkd"] and loaded["bare"] > 0
    assert jpeg["bare"] <= min(jpeg["teacher_alone"], jpeg["decoding_alone"]) + 0.01
    assert jpeg["of_both_after_another"] > 0
