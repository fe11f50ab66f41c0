"""Lines, results and bars: what is printed where, and what stands below a bar."""

import io
import re
import sys
import warnings

import pytest
from rich.console import Console

from dfkd.app.arguments import QUIET
from dfkd.app.cli import main
from dfkd.system import console
from dfkd.system.console import answer, printing, progress, say, sparkline


@pytest.fixture
def terminal(monkeypatch):
    """A console that is a terminal; what it has been told."""
    told = io.StringIO()
    made = Console(file=told, force_terminal=True, width=100, highlight=False, color_system=None)
    monkeypatch.setattr(console, "console", lambda: made)
    return told


def test_printing__what_is_still_wanted(capsys):
    with printing(quiet=True, still=("answers",)):
        say("a line")
        answer("a result")
        with printing(quiet=False):  # within quiet, nothing becomes loud
            say("another line")
    shown = capsys.readouterr()
    assert shown.out == "a result\n"
    assert shown.err == ""
    say("after")
    assert capsys.readouterr().err == "after\n"


def test_progress__on_a_terminal_has_values_and_a_curve(terminal):
    with progress("training", 40, "steps") as bar:
        for k in range(4):
            bar.advance(10, "note", {"kd": 0.5 - k / 10, "ofd": 12345.6, "agreement": k / 4}, "agreement")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "40/40" in shown
    assert "kd 0.2   ofd 12,346   agreement 0.75" in shown
    assert "note" not in shown, "the values have it"
    assert "agreement ▁▃▆█" in shown


def test_progress__on_a_narrow_terminal_has_all_values(monkeypatch):
    told = io.StringIO()
    made = Console(file=told, force_terminal=True, width=40, highlight=False, color_system=None, soft_wrap=True)
    monkeypatch.setattr(console, "console", lambda: made)
    with progress("training", 1, "steps") as bar:
        bar.advance(1, values={f"a_long_name_{k}": k / 7 for k in range(4)})
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", told.getvalue()).splitlines()]
    assert {f"a_long_name_{k} {k / 7:.4g}" for k in range(4)} <= {*"   ".join(lines).split("   ")}
    assert max(map(len, lines)) <= 40


@pytest.mark.parametrize("module", ["ipykernel.iostream", "io"])
def test_ready_notebook__tqdm_does_not_ask_for_ipywidgets(monkeypatch, tmp_path, module):
    (tmp_path / "tqdm").mkdir()
    (tmp_path / "tqdm" / "__init__.py").touch()
    (tmp_path / "tqdm" / "auto.py").write_text("import warnings\nwarnings.warn('IProgress not found')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tqdm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("sys.stderr", type("Stream", (io.StringIO,), {"__module__": module})())
    with warnings.catch_warnings(record=True) as warned:
        console.ready_notebook()
    assert not warned
    assert ("tqdm.auto" in sys.modules) == (module != "io")


class Cell(io.StringIO):
    """The output of a cell, to which no cursor can go back."""

    __module__ = "ipykernel.iostream"


def test_progress__in_a_notebook_is_one_line_that_is_written_anew(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as ipykernel does
    monkeypatch.setattr(console, "NOTEBOOK_SECONDS", 0.0)
    monkeypatch.setattr("sys.stderr", cell := Cell())
    with progress("training", 3, "steps") as bar:
        bar.advance(1, "a long note behind the bar")
        say("a line between")
        bar.advance(2)
    say("after")
    written = cell.getvalue()
    assert "\x1b" not in written
    assert "1/3" in written
    assert written.count("\n") == 3
    shown = [line.rpartition("\r")[2] for line in written.split("\n")]
    assert shown[0] == "a line between"
    assert "3/3" in shown[1] and "long" not in shown[1]
    assert shown[2] == "after"


def test_progress__elsewhere_is_its_last_state_alone(capsys):
    with progress("training", 2, "steps") as bar:
        bar.advance(1, "", {"kd": 0.5}, "kd")
        bar.advance(1, "done", {"kd": 0.4}, "kd")
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "kd" not in shown
    assert len(shown.strip().splitlines()) == 1


@pytest.mark.parametrize(("still", "seen"), [((), False), (("bars",), True)])
def test_progress__of_a_stage_without_lines(terminal, still, seen):
    with printing(quiet=True, still=still), progress("training", 2, "steps") as bar:
        bar.advance(2)
    assert ("training" in terminal.getvalue()) == seen


def test_say__a_warning_is_seen_in_a_stage_without_lines(terminal):
    with printing(quiet=True, still=("bars", "warnings")):
        say("a line")
        say("warning: it may have collapsed")
    assert terminal.getvalue() == "warning: it may have collapsed\n"


def test_sparkline__from_the_lowest_to_the_highest():
    assert sparkline([float(k) for k in range(8)]) == "▁▂▃▄▅▆▇█"
    assert sparkline([3.0, 3.0]) == "▅▅"
    assert sparkline([0.0, float("nan"), 1.0]) == "▁ █"
    assert sparkline([float("inf")]) == " "


def test_quiet__prints_results_and_errors_only(capsys, tmp_path):
    assert main(["inspect", str(tmp_path), QUIET]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("dfkd inspect: ")
