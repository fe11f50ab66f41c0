import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dfkd.config import CompareConfig
from dfkd.report.compare import run
from dfkd.report.compare_page import command
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
        self.open += [] if tag in ("meta", "img") else [tag]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def test_page_csv_and_terminal(make_run, tmp_path: Path, capsys) -> None:
    names = ("<script>alert(1)</script>", "b")
    config = {"loss": ["kd"], "test": "/data/<t>.npz"}
    folders = [make_run(n, s, top1=0.5 + 0.01 * s, config=config if n == "b" else None) for n in names for s in (0, 1)]
    run(CompareConfig(runs=tuple(folders), out=str(tmp_path / "new" / "report.html")))
    page = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    seen = Balanced(page).seen
    assert "script" not in seen and "&lt;script&gt;alert(1)" in page
    assert seen.count("h2") == 5 and seen.count("pre") == 4 and seen.count("polyline") == 4
    assert seen.count("circle") == 4 + 4  # a seed each, and the ends of four lines
    assert "50.50 ± 0.71" in page and "/data/&lt;t&gt;.npz" in page
    differing = page[page.index("Options in which rows differ") :].partition("</table>")[0]
    assert re.findall(r'scope="row">([^<]+)', differing) == ["loss", "test"]
    assert len((tmp_path / "new" / "report.csv").read_text().splitlines()) == 5
    out = capsys.readouterr().out
    assert out.startswith("name") and "50.50 ± 0.71" in out and "is best" in out


def test_page_of_one_untested_run_without_metrics(make_run, tmp_path: Path, capsys) -> None:
    folder = make_run("a", top1=None, agreement=None, teacher_top1=None, test_images=None)
    (Path(folder) / "metrics.jsonl").unlink()
    run(CompareConfig(runs=(folder,), out=str(tmp_path / "report.html")))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert Balanced(page).seen.count("h2") == 3 and "No run was tested" in page
    assert "warning: one seed" in capsys.readouterr().out


def test_no_home_folder_in_page_and_csv(make_run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = make_run("a", config={"teacher": f"lenet5@{tmp_path}/t.pt"})
    run(CompareConfig(runs=(folder,), out=str(tmp_path / "report.html")))
    for name in ("report.html", "report.csv"):
        assert str(tmp_path) not in (tmp_path / name).read_text(encoding="utf-8")


def test_a_wrong_out_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no page"):
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
        "optimizer": "sgd",
    }
    line = command(config)
    assert line == (
        "dfkd distill --teacher lenet5@\"$HOME\"/'my teachers/t.pt' --student lenet5_half --samples 'a b' \"$HOME\"/c "
        "--out run --no-flip --lr 0.1 --loss kd:temperature=4 relation:1"
    )
    words = shlex.split(line.replace('"$HOME"', "/home/x"))
    assert words[2:6] == ["--teacher", "lenet5@/home/x/my teachers/t.pt", "--student", "lenet5_half"]
    assert words[6:9] == ["--samples", "a b", "/home/x/c"]
