"""The HTML page of a comparison."""

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dfkd.config import DistillConfig
from dfkd.config.texts import flag
from dfkd.report import compare_classes, compare_figures
from dfkd.report.answers import Explanation
from dfkd.report.collect import Row, settings
from dfkd.report.disagreements import gallery, pair_table, reliability
from dfkd.report.markup import Html, definitions, html, join, section, table, tag, write_page
from dfkd.report.table import markdown_table, reading, shown_table
from dfkd.system.portable import portable
from dfkd.system.text import counted

MACHINE = ("device", "precision", "dfkd", "torch")
"""Settings that name the device and the software of a run."""


def write(
    path: Path, rows: Sequence[Row], found: Sequence[str], explained: Mapping[str, Explanation] | None = None
) -> None:
    """Write the page of a comparison.

    `found` are the warnings. `explained` are the disagreements with the teacher, by row.
    """
    styles = {row.name: number for number, row in enumerate(rows)}
    shown = shown_table(rows)
    of_row = {row.name: settings(row) for row in rows}
    write_page(
        path,
        "Comparison of runs",
        tag("p", _machines(of_row), class_="note"),
        tag("p", reading(rows), class_="lead"),
        _warnings(found),
        section(
            "Summary",
            table("Mean ± standard deviation over seeds", shown.head, shown.body),
            tag("p", f"{shown.same[:1].upper()}{shown.same[1:]}.", class_="note") if shown.same else Html(),
            tag(
                "details",
                tag("summary", "The table as Markdown"),
                tag("pre", _lines(markdown_table(rows)), class_="copied"),
            ),
        ),
        _different(of_row),
        compare_figures.costs(rows, styles),
        compare_figures.seeds(rows),
        compare_figures.curves(rows, styles),
        compare_classes.exits(rows),
        compare_classes.classes(rows),
        _disagreements(rows, explained or {}),
        _same(of_row),
        _commands(rows),
    )


def _disagreements(rows: Sequence[Row], explained: Mapping[str, Explanation]) -> Html:
    """Return the section with a closed block per explained row: class pairs, reliability and images."""
    if not any(row.values("top1") for row in rows):
        return Html()
    heading = "Where student and teacher disagree"
    if not explained:
        hint = "dfkd compare ... --disagreements 12 shows the classes that are confused, and 12 images of each row."
        return section(heading, tag("p", hint, class_="note"))
    blocks = []
    for name, found in explained.items():
        words = f"{name}: agreement {1 - found.answers.differ.mean():.2%} of {len(found.answers.student):,} images"
        parts = (pair_table(found), reliability(found.answers), gallery(found))
        blocks.append(tag("details", tag("summary", words), *parts))
    note = "Of the first seed of a row. dfkd explain --model RUN shows more of one run."
    return section(heading, tag("p", note, class_="note"), *blocks)


def _lines(text: str) -> Html:
    """Convert a text to markup and keep its line breaks. Other control characters become visible."""
    return Html("\n".join(map(html, text.splitlines())))


def _machines(of_row: Mapping[str, Mapping[str, str]]) -> str:
    """Return a sentence with the number of rows, and the devices and software of the runs."""
    used = dict.fromkeys(
        ", ".join(f"{name} {values[name]}" for name in MACHINE if name in values) for values in of_row.values()
    )
    rows = counted(len(of_row), "row")
    return f"{rows}. Computed with {'; '.join(filter(None, used)) or 'versions that are not known'}."


def command(config: Mapping[str, Any]) -> str:
    """Return the command line that repeats a run: options that are not defaults, quoted for a shell, `~` as $HOME."""
    defaults = {f.name: f.default for f in dataclasses.fields(DistillConfig)}
    words = ["dfkd", "distill"]
    for name, value in config.items():
        if name == "preset" or value == _plain(defaults.get(name)):  # options have the preset's values
            continue
        if isinstance(value, bool):
            words.append(flag(name if value else f"no-{name}"))
        else:
            words += [flag(name), *(_quote(str(v)) for v in (value if isinstance(value, list) else [value]))]
    return " ".join(words)


def _warnings(found: Sequence[str]) -> Html:
    items = (tag("li", tag("strong", "Warning: "), text) for text in found)
    return tag("ul", *items, class_="warnings", aria_label="Warnings") if found else Html()


def _split(of_row: Mapping[str, Mapping[str, str]]) -> tuple[list[str], list[str]]:
    """Return the options in which rows differ, and the other options."""
    names = list(dict.fromkeys(name for values in of_row.values() for name in values))
    different = [name for name in names if len({values.get(name) for values in of_row.values()}) > 1]
    return different, [name for name in names if name not in different]


def _different(of_row: Mapping[str, Mapping[str, str]]) -> Html:
    different, _ = _split(of_row)
    if not different:
        return Html()
    lines = [[name, *(values.get(name, "-") for values in of_row.values())] for name in different]
    head, body = ["option", *of_row], lines
    if len(of_row) > len(different):  # the longer side goes down: few columns fit side by side
        head, *body = map(list, zip(["name", *of_row], *lines, strict=True))
    found = table("Options in which rows differ", head, body, words=True)
    return section("What differs", found)


def _same(of_row: Mapping[str, Mapping[str, str]]) -> Html:
    _, same = _split(of_row)
    if not same:
        return Html()
    first = next(iter(of_row.values()))
    return section(
        "What is the same",
        tag("details", tag("summary", "Options that all rows share"), definitions((k, first[k]) for k in same)),
    )


def _commands(rows: Sequence[Row]) -> Html:
    """Return the section with a closed block per row, and a command per seed."""
    blocks = (
        tag("details", tag("summary", row.name), *(tag("pre", _unbroken(command(run.config))) for run in row.runs))
        for row in rows
    )
    note = tag("p", "Paths are shown as given, with $HOME for the home directory.", class_="note")
    return section("How to reproduce", note, join(blocks))


def _unbroken(text: str) -> Html:
    """Return a command whose options are not broken at a hyphen, where a browser would end a line."""
    return Html(" ".join(tag("span", word) if word.startswith("--") else html(word) for word in text.split(" ")))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _quote(word: str) -> str:
    """Quote a word for a shell. `~/` becomes $HOME, which is expanded within quotes, too. `$NAME` stays a variable."""
    parts = re.split(r"(~/|\$\w+)", portable(word))
    quoted = [shlex.quote(part) if part else "" for part in parts]
    for i in range(1, len(parts), 2):
        quoted[i] = '"$HOME"/' if parts[i] == "~/" else f'"{parts[i]}"'
    return "".join(quoted) or "''"
