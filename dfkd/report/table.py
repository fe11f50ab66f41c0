"""Texts of a comparison: the cells of its table, a summary in one sentence, warnings, and the CSV."""

import csv
import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from dfkd.formats.run_records import Result
from dfkd.report.collect import NEEDED, WORDS, FinishedRun, Row, best_first
from dfkd.system.portable import portable
from dfkd.system.text import aligned, visible

BEGINNINGS = {"teacher": "the teacher's layers", "given": "weights of their own", "random": "random weights"}
"""Initial weights of the student, in the words of a warning."""
_FORMULA = ("=", "+", "-", "@")
HEAD = (
    "name",
    "seeds",
    "top-1 %",
    "agreement %",
    "to teacher, points",
    "steps",
    "seconds",
    "teacher forwards",
    "generator steps",
    "images/s",
    "student parameters",
    "source",
)


def cells(row: Row) -> list[str]:
    """Return a text for each column in `HEAD`, with `-` for a value that is missing."""
    to_teacher = teacher_difference(row)
    rates = [r.result.images_seen / r.result.seconds for r in row.runs if r.result.seconds > 0]
    return [
        row.name,
        str(len(row.runs)),
        with_deviation(row, "top1"),
        with_deviation(row, "agreement"),
        "-" if to_teacher is None else f"{to_teacher:+.2f}",
        *(_count(row.mean(field)) for field in ("steps", "seconds", "teacher_forwards", "generator_steps")),
        _count(fmean(rates) if rates else None),
        _count(row.mean("student_parameters")),
        ", ".join(dict.fromkeys(row.values("source"))),
    ]


def with_deviation(row: Row, field: str) -> str:
    """Format the mean of a share in percent, with the sample standard deviation if there are two or more seeds."""
    mean, deviation = row.mean(field), row.deviation(field)
    if mean is None:
        return "-"
    return f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def teacher_difference(row: Row) -> float | None:
    """Return the student's minus the teacher's top-1 accuracy in percentage points, averaged over seeds."""
    both = [(run.result.top1, run.result.teacher_top1) for run in row.runs]
    apart = [100 * (ours - theirs) for ours, theirs in both if ours is not None and theirs is not None]
    return fmean(apart) if apart else None


@dataclass(frozen=True)
class Shown:
    """The table without redundant columns, and the costs that are the same in all rows as a text."""

    head: list[str]
    body: list[list[str]]
    same: str


def shown_table(rows: Sequence[Row]) -> Shown:
    """Return the table. Costs that are the same in all of several rows become a text beside it."""
    body = [cells(row) for row in rows]
    named = ("steps", "teacher forwards", "generator steps", "student parameters", "source")
    costs = [HEAD.index(name) for name in named]
    none = [k for k in costs if {line[k] for line in body} <= {"0", "-"}]  # for example no generators
    same = [k for k in costs if len(rows) > 1 and len({line[k] for line in body}) == 1 and k not in none]
    kept = [k for k in range(len(HEAD)) if k not in (*same, *none)]
    words = f"in all rows: {', '.join(f'{HEAD[k]} {body[0][k]}' for k in same)}" if same else ""
    return Shown([HEAD[k] for k in kept], [[line[k] for k in kept] for line in body], words)


def terminal_table(rows: Sequence[Row], width: int | None = None) -> str:
    """Return the table as aligned text. With `width`, the last columns are left out if the table is wider."""
    shown = shown_table(rows)
    kept, text = len(shown.head), aligned(shown.head, shown.body)
    while width is not None and kept > 1 and len(text.partition("\n")[0]) > width:
        kept -= 1
        text = aligned(shown.head[:kept], [line[:kept] for line in shown.body])
    more = f"more in the page: {', '.join(shown.head[kept:])}" if kept < len(shown.head) else ""
    return "\n".join(filter(None, (text, more, shown.same)))


def markdown_table(rows: Sequence[Row]) -> str:
    """Return the table as Markdown, for a README."""
    shown = shown_table(rows)

    def line(values: Sequence[str]) -> str:
        texts = (visible(portable(value)).replace("\\", "\\\\").replace("|", "\\|") for value in values)
        return f"| {' | '.join(texts)} |"

    ruler = ["---" if name in ("name", "source") else "---:" for name in shown.head]
    return "\n".join([line(shown.head), line(ruler), *map(line, shown.body), *(["", shown.same] if shown.same else [])])


def reading(rows: Sequence[Row]) -> str:
    """Summarize the table in one sentence, with the larger of the two best rows' deviations over seeds."""
    tested = [row for row in rows if row.values("top1")]
    if not tested:
        return "No run was tested, so there is no accuracy. Use dfkd distill --test."
    best = tested[0]
    if len(tested) == 1:
        away = teacher_difference(best)
        tail = "" if away is None else f", {abs(away):.2f} points {'below' if away < 0 else 'above'} its teacher"
        return f"{best.name} reaches {with_deviation(best, 'top1')} %{tail}."
    second = tested[1]
    a, b = (100 * (row.mean("top1") or 0.0) for row in (best, second))
    start = f"{best.name} is best: {a:.2f} % over {b:.2f} % ({second.name}) by {a - b:.2f} points, "
    spreads = [100 * d for row in (best, second) if (d := row.deviation("top1")) is not None]
    if len(spreads) < 2:
        return start + "but a row with a single seed does not say how far seeds are apart."
    if a - b <= max(spreads):
        start = f"{best.name} ({a:.2f} %) and {second.name} ({b:.2f} %) are level: {a - b:.2f} points apart, "
    verdict = "more" if a - b > max(spreads) else "no more"
    return start + f"which is {verdict} than the seeds' spread ({max(spreads):.2f} points)."


def warnings(rows: Sequence[Row]) -> list[str]:
    """Return what makes the rows hard to compare, each with the rows concerned."""
    found = []

    def differ(what: str, value: Callable[[Row], list[str]]) -> bool:
        names: dict[str, list[str]] = {}
        for row in rows:
            for text in dict.fromkeys(value(row)):
                names.setdefault(text, []).append(row.name)
        if len(names) > 1:
            found.append(f"{what}: {'; '.join(f'{text} ({_listed(who)})' for text, who in names.items())}")
        return len(names) > 1

    def numbers(field: str) -> Callable[[Row], list[str]]:
        return lambda row: [f"{value:,}" for value in row.values(field)]

    def percents(field: str) -> Callable[[Row], list[str]]:
        return lambda row: [f"{value:.4%}" for value in row.values(field)]

    def teachers(row: Row) -> list[str]:
        prints = [run.content.teacher for run in row.runs if run.content is not None]
        return [f"{textwrap.shorten(t.architecture, 60, placeholder='...')} {t.weights[:8]}" for t in prints]

    def beginnings(row: Row) -> list[str]:
        return [BEGINNINGS.get(begins, begins) for begins in row.values("begins")]

    def precisions(row: Row) -> list[str]:
        return [run.content.compute.precision for run in row.runs if run.content is not None]

    if not differ("not compared at equal optimizer steps", numbers("steps")):
        differ("not compared at equal numbers of images seen", numbers("images_seen"))
    tests = differ("tested on different numbers of images", numbers("test_images"))
    if not differ("taught by different teachers", teachers) and not tests:
        differ("one teacher with different accuracies, so the test images differ", percents("teacher_top1"))
    differ("students of different size", numbers("student_parameters"))
    differ("students that begin differently", beginnings)
    differ("trained in different precision", precisions)
    partly = [row.name for row in rows if len(row.values("top1")) < len(row.runs)]
    if partly and any(row.values("top1") for row in rows):
        found.append(f"not every run was tested: {_listed(partly)}")
    single = [row.name for row in rows if len(row.runs) == 1]
    if single and len(rows) > 1:
        found.append(f"one seed: a difference may be noise ({_listed(single)})")
    return found


def csv_text(rows: Sequence[Row]) -> str:
    """Return one line per run: its name, seed and folder, then every scalar of its result."""
    runs = [run for row in rows for run in row.runs]
    first = ("name", "seed", "folder")
    tables = [{**run.result.table, **_exits(run)} for run in runs]
    fields = dict.fromkeys(f for table in tables for f, v in table.items() if not isinstance(v, (list, dict)))
    file = io.StringIO()
    writer = csv.DictWriter(
        file, [*first, *(f for f in fields if f not in first)], extrasaction="ignore", lineterminator="\n"
    )
    writer.writeheader()
    for run, table in zip(runs, tables, strict=True):
        row = {**table, "folder": run.folder}
        writer.writerow({key: csv_cell(row[key]) for key in row})
    return file.getvalue()


def _exits(run: FinishedRun) -> dict[str, float]:
    return {f"exit_{number}_top1": top1 for number, top1 in enumerate(run.result.exits or (), 1)}


def read_csv(text: str) -> list[Row]:
    """Read the rows of a comparison's CSV, with the fields that `cells` needs. Tables of stored results use this."""
    names: dict[str, list[FinishedRun]] = {}
    for line in csv.DictReader(io.StringIO(text)):
        values: dict[str, Any] = {
            field: line[field] if field in WORDS else _number(line.get(field, "")) for field in NEEDED
        }
        result = Result(**values, begins=line.get("begins"), files={}, table=values)
        names.setdefault(line["name"], []).append(FinishedRun(line["folder"], {}, None, result, []))
    return best_first([Row(name, tuple(runs)) for name, runs in names.items()])


def _number(text: str) -> int | float | None:
    return (int(text) if text.isdecimal() else float(text)) if text else None


def csv_cell(value: Any) -> Any:
    """Return a value for a CSV that a spreadsheet opens. Text that looks like a formula gets a leading quote."""
    if not isinstance(value, str):
        return value
    text = visible(portable(value))
    return f"'{text}" if text.startswith(_FORMULA) else text


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if value < 100 and value % 1 else f"{value:,.0f}"
