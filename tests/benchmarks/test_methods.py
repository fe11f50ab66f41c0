import csv
import json

import numpy as np
import pytest

from dfkd.app import demo
from dfkd.system.errors import RequestError


@pytest.fixture
def methods(script, monkeypatch, digits_teacher):
    """The script on a heap of 600 images of digits' size, with the tests' teacher."""
    methods = script("methods")
    monkeypatch.setattr(demo, "POOL_IMAGES", 600)
    monkeypatch.setattr(methods, "COUNTS", {"digits": 40})
    monkeypatch.setattr(methods, "COST_IMAGES", 64)
    monkeypatch.setattr(demo, "train_teacher", lambda *_: pytest.fail("the tests have a teacher"))

    def run(out, *arguments):
        monkeypatch.setattr("sys.argv", ["methods.py", "digits", str(out), *arguments])
        (out / "digits" / "data").mkdir(parents=True, exist_ok=True)
        weights = out / "digits" / "data" / "teacher.safetensors"
        weights.write_bytes(digits_teacher.read_bytes())
        with pytest.raises(SystemExit) as ended:
            methods.main()
        return ended.value.code, table(out / "digits" / "methods.csv")

    return run


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return {(line["row"], line["seed"], line["steps"]): line for line in csv.DictReader(file)}


def test_rows_are_measured_one_by_one_and_the_table_has_all(methods, tmp_path):
    status, first = methods(tmp_path, "random", "clean", "--seeds", "0", "1", "--no-training")
    assert status == 0 and {*first} == {(row, seed, "") for row in ("random", "clean") for seed in "01"}
    of = {row: first[row, "0", ""] for row in ("random", "clean")}
    assert float(of["clean"]["photos"]) == 1 and 0 < float(of["random"]["photos"]) < 0.35
    assert sum(int(part.split(":")[1]) for part in of["random"]["kinds"].split()) == 40
    assert 1 <= float(of["clean"]["effective"]) <= 10 and 1 <= int(of["clean"]["covered"]) <= 10
    assert float(of["random"]["cost"]) > 0 and of["random"]["top1"] == ""
    own = "threshold:draw=random+balance=none"
    status, second = methods(tmp_path, own, "dfnd", "--seeds", "0", "--steps", "2")
    assert status == 0 and {*second} == {*first, ("threshold-draw-random-balance-none", "0", "2"), ("dfnd", "0", "2")}
    assert second["threshold-draw-random-balance-none", "0", "2"]["method"] == "threshold:draw=random"
    assert 0 < float(second["dfnd", "0", "2"]["top1"]) < 1
    assert [second[key] for key in first] == [*first.values()]
    about = json.loads((tmp_path / "digits" / "methods.json").read_text())
    assert about["command"].endswith(f"methods.py digits OUT {own} dfnd --seeds 0 --steps 2") and {
        "date",
        "hardware",
    } <= {*about}


def test_a_refused_row_leaves_the_others(methods, tmp_path, capsys):
    status, found = methods(tmp_path, "threshold+gamma=0.01", "random", "--seeds", "0", "--no-training")
    assert status == 2 and {*found} == {("random", "0", "")}
    assert "threshold-gamma-0.01-seed0: --count=40 is above" in capsys.readouterr().err


def test_photos_count_with_their_classes_alone(script, tmp_path, monkeypatch):
    methods = script("methods")
    monkeypatch.setattr(methods.dfkd, "open_selection", lambda _: type("S", (), {"manifest": MANIFEST}))
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"reason": ["selected"] * 5 + ["not_drawn"], "prediction": [0, 0, 1, 2, 2, 3]}
    pq.write_table(pa.table(columns), tmp_path / "scores.parquet")
    np.savez(tmp_path / "kinds.npz", names=["photo", "text"], kind=[0, 0, 0, 1, 1, 0])
    held = methods.chosen(tmp_path, tmp_path / "kinds.npz")
    assert (held["photos"], held["kinds"], held["covered"]) == (0.6, "photo:3 text:2", 2)
    assert held["effective"] == pytest.approx(1.89, abs=0.01)  # exp of the entropy of 2/3 and 1/3


MANIFEST = {"classes": 4, "config": {"method": "random"}}


@pytest.mark.parametrize("row", ["random+balance", "random+=none"])
def test_a_row_that_is_none_is_refused(script, row):
    with pytest.raises(RequestError, match="is not METHOD\\+option=value"):
        script("methods").parsed(row)
