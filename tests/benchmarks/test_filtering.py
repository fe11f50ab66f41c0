"""What a filter costs, on a few images, with small teachers and one round."""

import json
import sys


def test_rows_for_scoring_and_for_the_fit(tmp_path, data, small_teachers, script, monkeypatch):
    filtering = script("filtering", "speed")
    monkeypatch.setattr(filtering, "RAW", small_teachers)
    monkeypatch.setattr(filtering, "ROUNDS", 1)
    monkeypatch.setenv("DFKD_DATA", str(data))
    monkeypatch.setattr(sys, "argv", ["filtering.py", str(tmp_path / "filtering.json"), "20"])
    filtering.main()
    rows = json.loads((tmp_path / "filtering.json").read_text())["rows"]
    assert [row["what"].split(":")[0] for row in rows] == ["one", "one", "two", "two"]
    for scored, fit in zip(rows[::2], rows[1::2], strict=True):
        assert min(scored["dfkd"], scored["bare"]) > 0
        assert fit["bare"] == 20 < fit["dfkd"]  # 60 steps of 64 images take longer than to score 20
        assert fit["ratios"] == [fit["ratio"]]
