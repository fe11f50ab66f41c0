"""A chart of values over a cost, with error bars and the Pareto front. Each row has its own shape and color."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dfkd.report.charts import SERIES_STYLES, Number, Scale, anchor, svg, y_labels
from dfkd.report.markup import Html, tag

SHAPES = (
    "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0",
    "M-4.5,-4.5H4.5V4.5H-4.5Z",
    "M0,-6L5.5,4.5H-5.5Z",
    "M0,-6.5L6.5,0L0,6.5L-6.5,0Z",
    "M0,6L5.5,-4.5H-5.5Z",
    "M-2,-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
    "M-6,-3.5L-3.5,-6L0,-2.5L3.5,-6L6,-3.5L2.5,0L6,3.5L3.5,6L0,2.5L-3.5,6L-6,3.5L-2.5,0Z",
    "M0,-6.5L6.2,-2L3.8,5.3H-3.8L-6.2,-2Z",
)
"""Outlines of markers around (0, 0), one per color, so that rows also differ without color."""
WIDE = 20
"""Ratio of the largest to the smallest cost from which the axis is logarithmic."""


@dataclass(frozen=True)
class Spot:
    """Mean cost and mean value of a row, with their standard deviations over its seeds."""

    cost: Number
    value: Number
    cost_spread: Number = 0.0
    value_spread: Number = 0.0


def pareto_front(spots: Mapping[str, Spot]) -> list[str]:
    """Return the rows that no other row beats at the same or a lower cost, the cheapest first."""
    front: list[str] = []
    best = -math.inf
    for name in sorted(spots, key=lambda name: (spots[name].cost, -spots[name].value)):
        if spots[name].value > best:
            front.append(name)
            best = spots[name].value
    return front


def scatter(
    title: str,
    spots: Mapping[str, Spot],
    styles: Mapping[str, int],
    shown: Callable[[float], str],
    reference: float | None = None,
) -> Html:
    """Draw values over costs. `shown` formats a value, and `reference` is the value of a broken line."""
    front = pareto_front(spots)
    costs = [s.cost for s in spots.values()]
    logarithmic = min(costs) > 0 and max(costs) >= WIDE * min(costs)
    along = math.log10 if logarithmic else float
    x = Scale([along(c) for c in costs] + ([] if logarithmic else _ends(spots, "cost")), margin=0.06)
    y = Scale([*_ends(spots, "value"), *([] if reference is None else [reference])], margin=0.12)
    height, bottom, top = 260, 220, 8

    def across(cost: Number) -> str:
        return f"{min(max(x(along(cost)), 0), 100)}%"

    def down(value: Number) -> float:
        return round(bottom - (bottom - top) * y(value) / 100, 2)

    parts = [tag("line", class_="grid", x1=0, x2="100%", y1=down(v), y2=down(v)) for v in y.ticks()]
    parts += y_labels({shown(v): down(v) for v in y.ticks()})
    for tick in _log_ticks(x) if logarithmic else x.ticks():
        parts.append(tag("line", class_="grid", x1=across(tick), x2=across(tick), y1=bottom, y2=bottom + 5))
        parts.append(tag("text", _short(tick), x=across(tick), y=bottom + 19, text_anchor=anchor(x(along(tick)))))
    if reference is not None:
        parts.append(tag("line", class_="reference", x1=0, x2="100%", y1=down(reference), y2=down(reference)))
    parts.append(_front([(x(along(spots[name].cost)), down(spots[name].value)) for name in front], height))
    for name in sorted(spots, key=lambda name: -styles[name]):  # the rows of a color of their own are in front
        parts += _marker(name, spots[name], styles[name], across, down, logarithmic)
    words = "; ".join(f"{name}: {shown(s.value)} at {_short(s.cost)}" for name, s in spots.items())
    scale = " The axis of the cost is logarithmic." if logarithmic else ""
    return svg(title, f"{words}. Pareto front: {', '.join(front)}.{scale}", height, *parts, style="axes")


def marker(number: int) -> Html:
    """Return a row's marker for a legend. Rows after the last style share one."""
    shape, style = _look(number)
    mark = tag("path", d=shape, class_=f"spot {style}", transform="translate(8 8)")
    return tag("svg", mark, width=16, height=16, aria_hidden="true")


def _marker(
    name: str,
    spot: Spot,
    number: int,
    across: Callable[[Number], str],
    down: Callable[[Number], float],
    logarithmic: bool,
) -> list[Html]:
    """Return the error bars of a row, and its marker in front of them."""
    shape, style = _look(number)
    at, level = across(spot.cost), down(spot.value)
    low, high = down(spot.value - spot.value_spread), down(spot.value + spot.value_spread)
    parts = [tag("line", class_=f"error {style}", x1=at, x2=at, y1=low, y2=high)] if spot.value_spread else []
    if spot.cost_spread and not (logarithmic and spot.cost <= spot.cost_spread):
        ends = {"x1": across(spot.cost - spot.cost_spread), "x2": across(spot.cost + spot.cost_spread)}
        parts.append(tag("line", class_=f"error {style}", y1=level, y2=level, **ends))
    mark = tag("path", tag("title", name), d=shape, class_=f"spot {style}")
    return [*parts, tag("svg", mark, x=at, y=level, overflow="visible")]


def _look(number: int) -> tuple[str, str]:
    """Return a row's outline and class."""
    return (SHAPES[number], f"s{number}") if number < SERIES_STYLES else (SHAPES[0], "others")


def _front(points: Sequence[tuple[float, float]], height: int) -> Html:
    """Return the Pareto front as steps: the best value up to each cost."""
    path = [f"{points[0][0]},{points[0][1]}"]
    for (_, before), (cost, value) in itertools.pairwise(points):
        path += [f"{cost},{before}", f"{cost},{value}"]
    path.append(f"100,{points[-1][1]}")
    frame = {"viewBox": f"0 0 100 {height}", "preserveAspectRatio": "none"}
    line = tag("polyline", tag("title", "Pareto front"), class_="front-line", points=" ".join(path))
    return tag("svg", line, x=0, y=0, width="100%", height=height, **frame)


def _ends(spots: Mapping[str, Spot], of: str) -> list[Number]:
    """Return the ends of the error bars."""
    pairs = [(getattr(s, of), getattr(s, f"{of}_spread")) for s in spots.values()]
    return [mean + sign * spread for mean, spread in pairs for sign in (-1, 1)]


def _log_ticks(x: Scale) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten within a logarithmic range.

    If these are too many, return the powers alone.
    """
    powers = range(math.floor(x.low), math.ceil(x.high) + 1)
    ticks = [m * 10.0**p for p in powers for m in (1, 2, 5) if x.low <= math.log10(m * 10.0**p) <= x.high]
    return ticks if len(ticks) <= 7 else [t for t in ticks if math.log10(t) % 1 == 0]


def _short(value: Number) -> str:
    """Format a number in at most five characters."""
    for unit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{sign}"
    return f"{value:.3g}"
