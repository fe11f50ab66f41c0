"""Every row of students that learn from each other or themselves, for two steps and one seed."""

import csv
import shutil
import sys

import pytest

from dfkd.app import demo


def test_rows_of_each_way(tmp_path, script, monkeypatch, digits_teacher):
    students = script("students")
    monkeypatch.setattr(demo, "train_teacher", lambda *_: pytest.fail("the tests have a teacher"))
    monkeypatch.setattr(sys.modules["digits"], "PATCHES", 300)
    monkeypatch.setitem(students.SETTINGS["digits"], "seeds", [0])
    monkeypatch.setitem(students.SETTINGS["digits"], "count", 150)
    monkeypatch.setitem(students.MUTUAL, "kd codistillation", ["kd", "codistillation:burn_in=1"])
    shutil.copy(digits_teacher, tmp_path / "teacher.safetensors")
    monkeypatch.setattr(sys, "argv", ["students.py", str(tmp_path), "2"])
    with pytest.raises(SystemExit) as ended:
        students.main()
    assert ended.value.code == 0
    rows = list(csv.DictReader((tmp_path / "report.csv").read_text().splitlines()))
    names = {"kd", "kd-byot", "kd-cskd", "kd-ddgsd", "kd-twice-the-steps"}
    names |= {name + other for name in students.MUTUAL for other in ("", ", the other one")}
    assert {row["name"] for row in rows} == names and len(rows) == len(names)
