"""Students together against each alone, in one round of one step."""

import json
import sys


def test_rows_for_several_students(tmp_path, script, monkeypatch):
    together = script("together", "speed")
    monkeypatch.setattr(together, "TEACHER", "cifar_resnet:depth=8,width=4,num_classes=10,in_channels=3")
    monkeypatch.setattr(sys.modules["distilling"], "IMAGES", 300)
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "cache"))  # the script sets its own: back to this one afterwards
    monkeypatch.delenv("DFKD_DATA", raising=False)
    monkeypatch.setattr(together, "STUDENT", "cifar_resnet:depth=8,width=2")
    monkeypatch.setattr(together, "CASES", (("kd", 2), ("kd dml:hard=0", 2)))
    monkeypatch.setattr(sys, "argv", ["together.py", str(tmp_path / "out.json"), "1", "1"])
    together.main()
    plain, mutual = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert plain["what"] == "kd, 2 students, processor seconds a step"
    assert min(plain["dfkd"], plain["bare"], mutual["ratio"]) > 0
