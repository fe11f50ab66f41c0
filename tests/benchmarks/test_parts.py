"""Scoring by several commands at once, on a few images, in one round."""

import json
import sys


def test_rows_for_scoring_selecting_and_tars(tmp_path, script, monkeypatch):
    parts = script("parts", "speed")
    monkeypatch.setattr(parts, "ROUNDS", 1)
    monkeypatch.setattr(parts, "TEACHER", "cifar_resnet:depth=8,width=4,num_classes=10,in_channels=3")
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "cache"))  # the script sets its own: back to this one afterwards
    monkeypatch.delenv("DFKD_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["parts.py", str(tmp_path / "parts.json"), "60", "2"])
    parts.main()
    scored, selected, opened = json.loads((tmp_path / "parts.json").read_text())["rows"]
    assert scored["what"] == "scored by 2 commands at once; by one of 2 threads"
    assert selected["bare"] == scored["bare"] > 0
    assert min(scored["dfkd"], selected["dfkd"], opened["dfkd"], opened["bare"]) > 0
    assert all(len(row["ratios"]) == 1 for row in (scored, selected, opened))
