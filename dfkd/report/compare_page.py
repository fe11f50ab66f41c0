"""Rows -> the page of the comparison."""

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dfkd.config import DistillConfig
from dfkd.report.charts import figure, legend, lines, strips
from dfkd.report.collect import Row, curve, settings
from dfkd.report.markup import Html, definitions, join, section, table, tag, write_page
from dfkd.report.table import HEAD, cells, reading
from dfkd.system.portable import portable

CURVES = (
    ("loss", "Total loss. Rows with other losses have other totals: their heights cannot be compared."),
    ("agreement", "Share of the training views on which student and teacher name the same class."),
)


def write(path: Path, rows: Sequence[Row], found: Sequence[str]) -> None:
    """Write the comparison's page, with the warnings that were `found`."""
    styles = {row.name: number for number, row in enumerate(rows)}
    write_page(
        path,
        "Comparison of runs",
        tag("p", reading(rows), class_="lead"),
        _warnings(found),
        section("Summary", table("Mean ± standard deviation over seeds", HEAD, map(cells, rows))),
        _accuracies(rows),
        _curves(rows, styles),
        _settings(rows),
        _commands(rows),
    )


def command(config: Mapping[str, Any]) -> str:
    """The command line that repeats a run: what is not a default, quoted for a shell, `~` as $HOME."""
    defaults = {f.name: f.default for f in dataclasses.fields(DistillConfig)}
    words = ["dfkd", "distill"]
    for name, value in config.items():
        if name == "preset" or value == _plain(defaults.get(name)):  # a preset's values are among the others
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *(_quote(str(v)) for v in (value if isinstance(value, list) else [value]))]
    return " ".join(words)


def _warnings(found: Sequence[str]) -> Html:
    items = (tag("li", tag("strong", "Warning: "), text) for text in found)
    return tag("ul", *items, class_="warnings", aria_label="Warnings") if found else Html()


def _accuracies(rows: Sequence[Row]) -> Html:
    tested = {row.name: row.values("top1") for row in rows if row.values("top1")}
    if not tested:
        return Html()
    teachers = {value for row in rows for value in row.values("teacher_top1")}
    teacher = teachers.pop() if len(teachers) == 1 else None
    line = f" Broken line: the teacher, {teacher:.2%}." if teacher is not None else ""
    caption = f"A dot for each seed, a bar at their mean, a thin line one standard deviation to both sides.{line}"
    return section("Top-1 accuracy of every seed", figure(caption, strips(tested, teacher, lambda v: f"{v:.1%}")))


def _curves(rows: Sequence[Row], styles: Mapping[str, int]) -> Html:
    charts = []
    for field, words in CURVES:
        series = {row.name: points for row in rows if (points := curve(row, field))}
        if series:
            ends = "; ".join(
                f"{name}: {points[-1][1]:.3g} at step {points[-1][0]:,.0f}" for name, points in series.items()
            )
            charts.append(figure(f"{words} Mean over seeds.", lines(f"{field} over steps", ends, series, styles)))
    if not charts:
        return Html()
    return section("Training, over optimizer steps", tag("div", *charts, class_="charts"), legend(styles))


def _settings(rows: Sequence[Row]) -> Html:
    of_row = {row.name: settings(row) for row in rows}
    names = list(dict.fromkeys(name for values in of_row.values() for name in values))
    different = [name for name in names if len({values.get(name) for values in of_row.values()}) > 1]
    body = ([name, *(values.get(name, "-") for values in of_row.values())] for name in different)
    same = [(name, of_row[rows[0].name][name]) for name in names if name not in different]
    return section(
        "What each row was",
        table("Options in which rows differ", ["option", *of_row], body, words=True) if different else Html(),
        tag("details", tag("summary", "Options that all rows share"), definitions(same)) if same else Html(),
    )


def _commands(rows: Sequence[Row]) -> Html:
    """A closed block a row, with a command a seed."""
    blocks = (
        tag("details", tag("summary", row.name), *(tag("pre", command(run.config)) for run in row.runs)) for row in rows
    )
    note = tag("p", "Paths are as they were given; the user's own folder is $HOME.", class_="note")
    return section("How to reproduce", note, join(blocks))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _quote(word: str) -> str:
    """A word for a shell, whose `~/` becomes $HOME also where a shell would not expand it, and `$NAME` is filled in."""
    parts = re.split(r"(~/|\$\w+)", portable(word))
    quoted = [shlex.quote(part) if part else "" for part in parts]
    for i in range(1, len(parts), 2):
        quoted[i] = '"$HOME"/' if parts[i] == "~/" else f'"{parts[i]}"'
    return "".join(quoted) or "''"
