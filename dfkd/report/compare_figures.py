"""The figures of a comparison: accuracy of every seed, accuracy over what it costs, learning curves, classes."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from dfkd.report.charts import Point, figure, legend, lines, strips
from dfkd.report.collect import Row, curve
from dfkd.report.markup import Html, section, table, tag
from dfkd.report.scatter import Spot, marker, scatter

CURVES = (
    ("loss", "Total loss. Rows with other losses have other totals: their heights cannot be compared."),
    ("agreement", "Share of the training views on which student and teacher name the same class."),
)
COSTS = (
    ("seconds", "Seconds of training"),
    ("teacher_forwards", "Teacher forwards: images that the teacher answered"),
    ("student_parameters", "Parameters of the student"),
)
"""Fields of a result that are costs, with the titles of their charts."""
MOST_CLASSES = 30
"""Classes of the table; of more, those that lose most."""


def seeds(rows: Sequence[Row]) -> Html:
    """Top-1 of every seed."""
    tested = {row.name: row.values("top1") for row in rows if row.values("top1")}
    if not tested:
        return Html()
    teacher = _teacher(rows)
    line = f" Broken line: the teacher, {teacher:.2%}." if teacher is not None else ""
    caption = f"A dot for each seed, a bar at their mean, a thin line one standard deviation to both sides.{line}"
    return section("Top-1 accuracy of every seed", figure(caption, strips(tested, teacher, lambda v: f"{v:.1%}")))


def costs(rows: Sequence[Row], styles: Mapping[str, int]) -> Html:
    """Accuracy over each cost that differs between tested rows."""
    tested = [row for row in rows if row.values("top1")]
    teacher, charts = _teacher(rows), []
    for field, title in COSTS:
        spots = {row.name: _spot(row, field) for row in tested if row.values(field)}
        if len({spot.cost for spot in spots.values()}) > 1:
            charts.append(figure(title, scatter(title, spots, styles, lambda v: f"{v:.1%}", teacher)))
    if not charts:
        return Html()
    note = (
        "Top-1 accuracy, upwards, over a cost. A sign is the mean over seeds, its lines one standard deviation. The "
        "grey steps are the Pareto front: the best accuracy that a cost buys."
        + (" Broken line: the teacher." if teacher is not None else "")
    )
    signs = (tag("li", marker(styles[row.name]), tag("span", row.name)) for row in tested)
    return section(
        "What accuracy costs",
        tag("p", note, class_="note"),
        tag("div", *charts, class_="charts three"),
        tag("ul", *signs, class_="legend"),
    )


def curves(rows: Sequence[Row], styles: Mapping[str, int]) -> Html:
    """Loss and agreement over steps, and over seconds."""
    charts = []
    for field, words in CURVES:
        of_steps = {row.name: points for row in rows if (points := curve(row, field))}
        if not of_steps:
            continue
        by_time = {row.name: points for row in rows if (points := over_seconds(row, of_steps.get(row.name, [])))}
        for what, series in (("steps", of_steps), ("seconds", by_time)):
            if series:
                ends = "; ".join(f"{name}: {p[-1][1]:.3g} at {p[-1][0]:,.0f} {what}" for name, p in series.items())
                title = f"{field} over {what}"
                charts.append(figure(f"{title.capitalize()}. {words}", lines(title, ends, series, styles)))
    if not charts:
        return Html()
    note = tag("p", "Means over seeds, at the steps that all of them logged.", class_="note")
    used = {row.name: styles[row.name] for row in rows}
    return section("Training", note, tag("div", *charts, class_="charts"), legend(used))


def over_seconds(row: Row, points: Sequence[Point]) -> list[Point]:
    """A curve over steps as one over seconds: the time of the steps alone, by the logged rates, the mean over seeds.

    Nothing where a seed has no rates.
    """
    clocks = []
    for run in row.runs:
        batch = run.result.images_seen / run.result.steps if run.result.steps and run.result.images_seen else 0
        clock, at, before = {}, 0.0, 0
        for logged in run.metrics:
            rate = logged.get("images_per_second")
            if not isinstance(rate, (int, float)) or not rate > 0:
                return []
            at, before = at + (logged["step"] - before) * batch / rate, logged["step"]
            clock[logged["step"]] = at
        clocks.append(clock)
    common = set.intersection(*map(set, clocks)) if clocks else set()
    return [(fmean(clock[int(step)] for clock in clocks), value) for step, value in points if int(step) in common]


def classes(rows: Sequence[Row]) -> Html:
    """Top-1 of every class beside the teacher's."""
    of_row = {row.name: means for row in rows if (means := _by_class(row, "per_class"))}
    teachers = [means for row in rows if (means := _by_class(row, "teacher_per_class"))]
    if not of_row or len({len(means) for means in of_row.values()}) > 1:
        return Html()
    count = len(next(iter(of_row.values())))
    theirs = teachers[0] if len({tuple(means) for means in teachers}) == 1 and len(teachers[0]) == count else None

    def lost(k: int) -> float:
        """How far the rows are below the teacher, or below one."""
        ours = [means[k] for means in of_row.values() if means[k] is not None]
        target = 1.0 if theirs is None else theirs[k]
        return 0.0 if not ours or target is None else target - fmean(value for value in ours if value is not None)

    shown = sorted(sorted(range(count), key=lambda k: -lost(k))[:MOST_CLASSES])
    body = []
    for k in shown:
        mine = [means[k] for means in of_row.values()]
        known = [value for value in mine if value is not None]
        best = max(known) if len({*known}) > 1 else None
        cells = [tag("td", _percent(v), class_="best" if v is not None and v == best else None) for v in mine]
        teacher = [_percent(theirs[k])] if theirs is not None else []
        body.append([str(k), *teacher, *cells, f"{-100 * lost(k):+.1f}" if known else "-"])
    head = [
        "class",
        *(["teacher"] if theirs is not None else []),
        *of_row,
        "mean to teacher" if theirs else "mean to 100 %",
    ]
    most = f" The {len(shown)} of {count:,} classes that lose most." if len(shown) < count else ""
    return section("Classes", table(f"Top-1 % of every class, the mean over seeds.{most}", head, body))


def exits(rows: Sequence[Row]) -> Html:
    """Top-1 of early exits beside that of the whole student, for the rows that have some."""
    of_row = {row.name: means for row in rows if (means := _by_class(row, "exits"))}
    if not of_row:
        return Html()
    most = max(map(len, of_row.values()))
    whole = {row.name: row.mean("top1") for row in rows}
    body = []
    for name, means in of_row.items():
        body.append([name, *map(_percent, [*means, *[None] * (most - len(means)), whole[name]])])
    head = ["row", *(f"exit {n}" for n in range(1, most + 1)), "whole student"]
    note = "Top-1 % of heads after the earlier stages, from the shallowest, the mean over seeds"
    return section("Early exits", table(note, head, body))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _by_class(row: Row, field: str) -> list[float | None] | None:
    """The mean over seeds for every class; None where no seed has it or they have different numbers of classes."""
    found = row.values(field)
    if not found or len({len(values) for values in found}) != 1 or not found[0]:
        return None
    columns = ([value for value in column if value is not None] for column in zip(*found, strict=True))
    return [fmean(column) if column else None for column in columns]


def _spot(row: Row, field: str) -> Spot:
    return Spot(
        row.mean(field) or 0.0, row.mean("top1") or 0.0, row.deviation(field) or 0.0, row.deviation("top1") or 0.0
    )


def _teacher(rows: Sequence[Row]) -> float | None:
    """The teacher's accuracy where there is one."""
    teachers = {value for row in rows for value in row.values("teacher_top1")}
    return teachers.pop() if len(teachers) == 1 else None
