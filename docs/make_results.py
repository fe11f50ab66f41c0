"""The tables of README.md and docs/results.md between their markers, from benchmarks/quality/results.

    python docs/make_results.py

`result_tables.py` says which rows they have. A new result file is one entry of TABLES there.
"""

import re

from make_losses import HERE, QUALITY, about, machine_text, rows_of
from result_tables import CURVES, ROWS, SUMMARY, SUMMARY_STEPS, TABLES

from dfkd.report.collect import Row, best_first
from dfkd.report.table import HEAD, cells, reading, terminal_table

README, RESULTS = HERE.parent / "README.md", HERE / "results.md"
SHOWN = ("seeds", "top-1 %", "agreement %", "to teacher, points", "steps", "seconds")


def joined(files):
    """The rows of result files; one of the same name in several, with other seeds, is one."""
    names = {}
    for file in files:
        for row in rows_of(file):
            names.setdefault(row.name, []).extend(row.runs)
    return [Row(name, tuple(runs)) for name, runs in names.items()]


def table(title, files, rows=ROWS, heading=None):
    """One table, the best row first, and what it was measured on; with the heading of a group that begins here."""
    if heading:
        return f"### {heading}\n\n{table(title, files, rows)}"
    measured = [name for name in files if (QUALITY / f"{name}.csv").exists()]
    if not measured:
        return f"Not measured yet ({', '.join(files)}): {title}."
    found = best_first(joined(measured))
    lines = [f"| row | {title} | {' | '.join(SHOWN)} |", f"| --- | --- |{' ---: |' * len(SHOWN)}"]
    for row in found:
        values = dict(zip(HEAD, cells(row), strict=True))
        shown = (f"`{row.name}`", rows.get(re.sub(r"-\d+$", "", row.name), ""), *(values[column] for column in SHOWN))
        lines.append(f"| {' | '.join(shown)} |")
    lines.append("")
    for name in files:
        source = f"[{name}.csv](../benchmarks/quality/results/{name}.csv)"
        what = "not measured yet"
        if name in measured:
            note = f"; {about(name)['note']}" if "note" in about(name) else ""
            what = f"`{about(name)['command']}`; {machine_text(about(name))}{note}"
        lines.append(f"- {source}: {what}")
    return "\n".join(lines)


def curves(lines=CURVES):
    """Accuracy against steps, a line for each method, with the number of seeds where there are several. What was not
    measured is left out."""
    shown = {point: _shown(row) for point, row in _points(lines).items()}
    steps = sorted({step for _, step in shown})
    head = [f"| 50,000 images; losses; top-1 % after so many steps | {' | '.join(f'{n:,}' for n in steps)} |"]
    head.append(f"| --- |{' ---: |' * len(steps)}")
    return "\n".join(
        [*head, *(f"| {line} | {' | '.join(shown.get((line, n), '') for n in steps)} |" for line in lines)]
    )


def summary(lines=SUMMARY, steps=SUMMARY_STEPS):
    """The README's table: some of the points of `curves`, rounded, and the teacher's accuracy."""
    points = _points(lines)
    teacher = next(iter(points.values())).mean("teacher_top1")
    head = f"| top-1 % of a student that learns from | {' | '.join(f'{n:,} steps' for n in steps)} |"
    rows = [f"| {line} | {' | '.join(_shown(points[line, n], 1) for n in steps)} |" for line in lines]
    teacher_row = f"| the teacher itself | {' | '.join([f'{100 * teacher:.1f}'] * len(steps))} |"
    return "\n".join([head, f"| --- |{' ---: |' * len(steps)}", *rows, teacher_row])


def _points(lines):
    """The runs of every line after every number of steps, as one row; what was not measured is left out."""
    points = {}
    for line, runs in lines.items():
        for name, wanted in runs:
            if (QUALITY / f"{name}.csv").exists():
                row = next(row for row in rows_of(name) if row.name == wanted)
                points.setdefault((line, int(row.mean("steps"))), []).extend(row.runs)
    return {point: Row("", tuple(runs)) for point, runs in points.items()}


def _shown(row, digits=2):
    seeds = f" ({len(row.runs)})" if len(row.runs) > 1 else ""
    return f"{100 * row.mean('top1'):.{digits}f}{seeds}"


def demo():
    """What `make demo` ends with, and how long it took where that was measured."""
    rows, on = rows_of("demo"), about("demo")
    said = f"{terminal_table(rows)}\n{reading(rows)}"
    took = (
        f"{on['wall_seconds']} seconds by `time {on['command']}` once installed"
        if "wall_seconds" in on
        else f"`{on['command']}`"
    )
    note = f"; {on['note']}" if "note" in on else ""
    return (
        f"{re.sub('^', '    ', said, flags=re.MULTILINE)}\n\n({took}; "
        f"{machine_text(on)}{note}; the runs are in\n[`demo.csv`](../benchmarks/quality/results/demo.csv).)"
    )


def tables():
    """Every table of TABLES."""
    return "\n\n".join(table(**one) for one in TABLES)


MADE = {README: [summary], RESULTS: [curves, demo, tables]}
"""The functions that make a page's tables; each stands between the markers of its name."""


def filled(file):
    """A whole page, its tables made anew."""
    text = file.read_text(encoding="utf-8")
    for make in MADE[file]:
        begin, end = f"<!-- {make.__name__}: made by docs/make_results.py -->\n", f"\n<!-- end of {make.__name__} -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) + len(begin) > text.index(end) + 1:
            raise SystemExit(f"{file.name} does not have one {begin.strip()} before one {end.strip()}")
        head, tail = text[: text.index(begin)], text[text.index(end) + len(end) :]
        text = f"{head}{begin}\n{make()}\n{end}{tail}"
    return text


def pages():
    """Every page that has tables from here, by its file."""
    return {file: filled(file) for file in MADE}


if __name__ == "__main__":
    for file, text in pages().items():
        file.write_text(text, encoding="utf-8")
