"""Figures of a comparison: accuracy of every seed, accuracy over cost, and training curves."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from dfkd.report.charts import SERIES_STYLES, Point, figure, legend, lines, strips
from dfkd.report.collect import Row, curve
from dfkd.report.markup import Html, section, tag
from dfkd.report.scatter import Spot, marker, scatter

CURVES = (
    ("loss", "Total loss. Rows with other losses have other totals: their heights cannot be compared."),
    ("agreement", "Share of the training views on which student and teacher name the same class."),
)
COSTS = (
    ("seconds", "Seconds of training"),
    ("teacher_forwards", "Images that the teacher answered"),
    ("student_parameters", "Parameters of the student"),
)
"""Fields of a result that are costs, with the titles of their charts."""


def seeds(rows: Sequence[Row]) -> Html:
    """Return the section with the top-1 accuracy of every seed."""
    tested = {row.name: row.values("top1") for row in rows if row.values("top1")}
    if not tested:
        return Html()
    teacher = _teacher(rows)
    line = f" Broken line: the teacher, {teacher:.2%}." if teacher is not None else ""
    caption = f"Dots are seeds. The bar is their mean, the thin line one standard deviation to both sides.{line}"
    return section("Top-1 accuracy of every seed", figure(caption, strips(tested, teacher, lambda v: f"{v:.1%}")))


def costs(rows: Sequence[Row], styles: Mapping[str, int]) -> Html:
    """Return the section with accuracy over each cost that differs between tested rows."""
    tested = [row for row in rows if row.values("top1")]
    teacher, charts = _teacher(rows), []
    for field, title in COSTS:
        spots = {row.name: _spot(row, field) for row in tested if row.values(field)}
        if len({spot.cost for spot in spots.values()}) > 1:
            charts.append(figure(title, scatter(title, spots, styles, lambda v: f"{v:.1%}", teacher)))
    if not charts:
        return Html()
    note = (
        "Top-1 accuracy over a cost. Symbols are means over seeds, their lines are one standard deviation. The grey "
        "line is the Pareto front: the best accuracy at this cost or less."
        + (" Broken line: the teacher." if teacher is not None else "")
    )
    named = {row.name: styles[row.name] for row in tested if styles[row.name] < SERIES_STYLES}
    others = {f"{len(tested) - len(named):,} other rows": SERIES_STYLES} if len(tested) > len(named) else {}
    signs = (tag("li", marker(number), tag("span", name)) for name, number in (named | others).items())
    return section(
        "What accuracy costs",
        tag("p", note, class_="note"),
        tag("div", *charts, class_="charts three"),
        tag("ul", *signs, class_="legend"),
    )


def curves(rows: Sequence[Row], styles: Mapping[str, int]) -> Html:
    """Return the section with loss and agreement over steps and over seconds, of as many rows as there are styles."""
    charts, shown = [], rows[:SERIES_STYLES]
    for field, words in CURVES:
        of_steps = {row.name: points for row in shown if (points := curve(row, field))}
        if not of_steps:
            continue
        by_time = {row.name: points for row in shown if (points := over_seconds(row, of_steps.get(row.name, [])))}
        for what, series in (("steps", of_steps), ("seconds", by_time)):
            if series:
                ends = "; ".join(f"{name}: {p[-1][1]:.3g} at {p[-1][0]:,.0f} {what}" for name, p in series.items())
                title = f"{field} over {what}"
                charts.append(figure(f"{title.capitalize()}. {words}", lines(title, ends, series, styles)))
    if not charts:
        return Html()
    few = f" The first {len(shown)} of {len(rows):,} rows." if len(rows) > len(shown) else ""
    note = tag("p", f"Means over seeds, at the steps that all seeds logged.{few}", class_="note")
    used = {row.name: styles[row.name] for row in shown}
    return section("Training", note, tag("div", *charts, class_="charts two"), legend(used))


def over_seconds(row: Row, points: Sequence[Point]) -> list[Point]:
    """Convert a curve over steps to one over seconds, averaged over the seeds.

    The seconds are those of the optimizer steps alone, from the logged rates. The result is empty if a seed has no
    rates.
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


def _spot(row: Row, field: str) -> Spot:
    return Spot(
        row.mean(field) or 0.0, row.mean("top1") or 0.0, row.deviation(field) or 0.0, row.deviation("top1") or 0.0
    )


def _teacher(rows: Sequence[Row]) -> float | None:
    """Return the teacher's accuracy, or None if it is not known or differs between runs."""
    teachers = {value for row in rows for value in row.values("teacher_top1")}
    return teachers.pop() if len(teachers) == 1 else None
