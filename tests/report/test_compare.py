import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dfkd.config import CompareConfig
from dfkd.formats.manifest import read_manifest
from dfkd.report.collect import collect, curve, read_run
from dfkd.report.compare import run
from dfkd.report.compare_classes import selected_images
from dfkd.report.compare_figures import over_seconds
from dfkd.report.compare_page import command
from dfkd.report.markup import VOID
from dfkd.system.errors import RequestError


class Balanced(HTMLParser):
    """Fails where an element is not closed; collects the elements' names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.seen.append(tag)
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def test_page_csv_and_terminal(make_run, tmp_path: Path, capsys) -> None:
    names = ("<script>alert(1)</script>", "b")
    config = {"loss": ["kd"], "test": "/data/<t>.npz"}
    folders = [make_run(n, s, top1=0.5 + 0.01 * s, config=config if n == "b" else None) for n in names for s in (0, 1)]
    run(CompareConfig(runs=tuple(folders), out=str(tmp_path / "new" / "report.html")))
    page = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    seen = Balanced(page).seen
    assert seen.count("script") == 1 and "&lt;script&gt;alert(1)" in page
    assert seen.count("h2") == 8 and seen.count("pre") == 5 and seen.count("polyline") == 4
    assert seen.count("circle") == 4 + 4  # a seed each, and the ends of four lines
    assert "50.50 ± 0.71" in page and "/data/&lt;t&gt;.npz" in page
    differing = page[page.index("Options in which rows differ") :].partition("</table>")[0]
    assert re.findall(r'scope="row">([^<]+)', differing) == ["loss", "test"]
    assert len((tmp_path / "new" / "report.csv").read_text().splitlines()) == 5
    out = capsys.readouterr().out
    assert out.startswith("name") and "50.50 ± 0.71" in out and "are level: 0.00 points apart" in out


def test_page_of_one_untested_run_without_metrics(make_run, tmp_path: Path, capsys) -> None:
    folder = make_run("a", top1=None, agreement=None, teacher_top1=None, test_images=None, per_class=None)
    (Path(folder) / "metrics.jsonl").unlink()
    run(CompareConfig(runs=(folder,), out=str(tmp_path / "report.html")))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert Balanced(page).seen.count("h2") == 3 and "No run was tested" in page
    assert ">1 row. Computed with" in page
    assert "warning" not in capsys.readouterr().out  # there is nothing to differ from


def section(page: str, heading: str) -> str:
    return page.partition(f"<h2>{heading}</h2>")[2].partition("</section>")[0]


def test_page__shows_what_accuracy_costs_and_every_class(make_run, tmp_path: Path) -> None:
    classes = {"teacher_per_class": [0.9, 1.0, None]}
    folders = [
        make_run("slow", s, top1=0.8 + 0.02 * s, seconds=900.0 + s, per_class=[0.6, 0.9 + 0.1 * s, None], **classes)
        for s in (0, 1)
    ]
    folders += [make_run("quick", top1=0.7, seconds=9.0, per_class=[0.5, 0.9, None], **classes)]
    folders += [make_run("poor", top1=0.6, seconds=90.0, per_class=[0.5, 0.7, None], **classes)]
    run(CompareConfig(runs=tuple(folders), out=str(tmp_path / "report.html")))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    costs = section(page, "What accuracy costs")
    # teacher forwards and parameters are the same in all rows: there is one chart
    assert re.findall(r'role="img" aria-label="([^"]+)"', costs) == ["Seconds of training"]
    assert "Pareto front: quick, slow" in costs and "logarithmic" in costs
    rows = re.findall(r'scope="row">(\d)</th>(.*?)</tr>', section(page, "Classes"))
    cells = {name: re.findall(r"<td[^>]*>([^<]+)", row) for name, row in rows}
    assert cells == {
        "0": ["90.0", "60.0", "50.0", "50.0", "-36.7"],
        "1": ["100.0", "95.0", "90.0", "70.0", "-15.0"],
        "2": ["-", "-", "-", "-", "-"],
    }


def test_page__names_the_classes_that_the_runs_name(make_run, tmp_path: Path) -> None:
    """Names of the runs that have them; without names if runs have others."""
    own, others = ("<ant>", "bee"), ("bee", "<ant>")
    for runs, shown in (((own, ()), ["0 &lt;ant&gt;", "1 bee"]), ((own, others), ["0", "1"]), (((),), ["0", "1"])):
        folders = [make_run(str(k), class_names=names, per_class=[0.5, 0.9]) for k, names in enumerate(runs)]
        run(CompareConfig(runs=tuple(folders), out=str(tmp_path / "report.html")))
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert re.findall(r'scope="row">([^<]+)</th>', section(page, "Classes")) == shown


def test_over_seconds__adds_up_the_time_of_the_steps(make_run) -> None:
    folder = make_run("a")  # batches of 128 images
    rows = [(50, 6400.0), (100, 3200.0)]
    text = "".join(f'{{"step": {s}, "loss": {s}.5, "images_per_second": {rate}}}\n' for s, rate in rows)
    (Path(folder) / "metrics.jsonl").write_text(text)
    (row,) = collect([folder])
    assert over_seconds(row, curve(row, "loss")) == [(1.0, 50.5), (3.0, 100.5)]


def test_over_seconds__without_rates_there_is_no_curve(make_run) -> None:
    (row,) = collect([make_run("a")])
    assert over_seconds(row, curve(row, "loss")) == []


def test_no_home_folder_in_page_and_csv(make_run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = make_run("a", config={"teacher": f"lenet5@{tmp_path}/t.pt"})
    run(CompareConfig(runs=(folder,), out=str(tmp_path / "report.html")))
    for name in ("report.html", "report.csv"):
        assert str(tmp_path) not in (tmp_path / name).read_text(encoding="utf-8")


def test_a_wrong_out_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not a page"):
        run(CompareConfig(runs=("absent",), out=str(tmp_path / "report.csv")))


def test_command_can_be_given_again(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    config = {
        "preset": "quick",
        "teacher": "lenet5@~/my teachers/t.pt",
        "student": "lenet5_half",
        "samples": ["a b", "~/c"],
        "out": "run",
        "seed": 0,
        "flip": False,
        "lr": 0.1,
        "loss": ["kd:temperature=4", "relation:1"],
        "teacher_taps": [],
        "optimizer": "auto",
    }
    line = command(config)
    assert line == (
        "dfkd distill --teacher lenet5@\"$HOME\"/'my teachers/t.pt' --student lenet5_half --samples 'a b' \"$HOME\"/c "
        "--out run --no-flip --lr 0.1 --loss kd:temperature=4 relation:1"
    )
    words = shlex.split(line.replace('"$HOME"', "/home/x"))
    assert words[2:6] == ["--teacher", "lenet5@/home/x/my teachers/t.pt", "--student", "lenet5_half"]
    assert words[6:9] == ["--samples", "a b", "/home/x/c"]


def test_page__marks_the_classes_that_a_selection_hardly_has(make_run, make_selection, tmp_path: Path) -> None:
    few = make_selection(tmp_path / "few", [0] * 29 + [1] * 30 + [2], 3)  # 2 % of an even share is left to class 2
    even = make_selection(tmp_path / "even", [0, 1, 2] * 2, 3)
    known, classes = {"content": {"selections": ["0" * 16]}}, {"teacher_per_class": [0.9, 0.9, 0.9]}
    folders = [
        make_run("few", config={"samples": [str(few)]}, per_class=[0.8, 0.8, 0.3], **known, **classes),
        make_run("even", config={"samples": [str(even)]}, per_class=[0.7, 0.7, 0.7], **known, **classes),
        make_run("moved", config={"samples": [str(tmp_path / "gone")]}, per_class=[0.1, 0.1, 0.1], **known, **classes),
    ]
    run(CompareConfig(runs=tuple(folders), out=str(tmp_path / "report.html")))
    shown = section((tmp_path / "report.html").read_text(encoding="utf-8"), "Classes")
    assert re.findall(r'title="([^"]+)">([\d.]+) †', shown) == [("1 of 60 selected images", "30.0")]
    assert "<li>few: the selection hardly has 1 of 3 classes (2); -60.0 points to the teacher there" in shown
    assert ", -10.0 elsewhere.</li>" in shown and shown.count("<li>") == 2
    assert "<li>Not marked, because the selections were moved or deleted: moved.</li>" in shown


def test_selected_images__of_another_selection_in_its_place_are_not_known(make_run, make_selection, tmp_path) -> None:
    folder = make_selection(tmp_path / "s", [0, 1, 1], 2)
    for fingerprint, found in (("0" * 16, [2, 4]), ("1" * 16, None)):
        content = {"selections": [fingerprint] * 2}
        ran = read_run(make_run("a", config={"samples": [str(folder)] * 2}, content=content))
        assert selected_images(ran, lambda name: read_manifest(Path(name))) == found


def test_compare__leaves_out_the_disagreements_of_a_run_whose_networks_are_gone(make_run, tmp_path, capsys) -> None:
    config = {"test": str(tmp_path / "gone.npz"), "teacher": str(tmp_path / "gone.pt")}
    folders = (make_run("a", config=config), make_run("b"))
    run(CompareConfig(runs=folders, out=str(tmp_path / "report.html"), disagreements=2))
    said = capsys.readouterr().err
    assert "note: the disagreements of a are left out: " in said and "of b are left out: give --data: " in said
    assert "--disagreements 12 shows" in (tmp_path / "report.html").read_text()
