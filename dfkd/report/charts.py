"""Small charts as inline SVG.

Widths are percentages and heights are pixels, so that a chart fills any screen and its text keeps its size. Rows differ
in color and in dash pattern. Every chart has a title and a description in words.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev

from dfkd.report.markup import Html, tag

SERIES_STYLES = 8
"""Number of styles in the style sheet, each a color and a dash pattern. More rows repeat the styles."""
MOST_POINTS = 300
"""Largest number of points per line. More points would only enlarge the file."""

Number = int | float
Point = tuple[Number, Number]


class Scale:
    """Map from values to percentages of the width or height. The range holds all values, with a margin."""

    def __init__(self, values: Sequence[Number], margin: Number = 0.05) -> None:
        low, high = min(values), max(values)
        pad = margin * (high - low) if high > low else 0.05 * abs(high) or 1.0  # a single value is centered
        self.low, self.high = low - pad, high + pad

    def __call__(self, value: Number) -> float:
        """Return the percentage of a value."""
        return round(100 * (value - self.low) / (self.high - self.low), 3)

    def ticks(self) -> list[float]:
        """Return a few round numbers within the range: multiples of 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / 4
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= 0.7 * rough)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(k * step, 12) for k in range(first, last + 1)]


def svg(title: str, description: str, height: int, *children: object, style: str | None = None) -> Html:
    """Return an SVG image of the full width, with an accessible name and description.

    An image of the style `axes` has a margin on the left, in which `y_labels` are.
    """
    named = (tag("title", title), tag("desc", description))
    return tag("svg", *named, *children, role="img", aria_label=title, width="100%", height=height, class_=style)


def y_labels(ticks: Mapping[str, Number]) -> list[Html]:
    """Return the labels of grid lines at some heights, in the margin of a chart."""
    return [tag("text", words, x=-6, y=at + 4, text_anchor="end") for words, at in ticks.items()]


def figure(caption: str, *children: object) -> Html:
    """Return a chart under its caption."""
    return tag("figure", tag("figcaption", caption), *children)


def lines(title: str, description: str, series: Mapping[str, Sequence[Point]], styles: Mapping[str, int]) -> Html:
    """Draw one line per series over a common x axis.

    There must be at least one point.
    """
    points = [point for line in series.values() for point in line]
    x, y = Scale([p[0] for p in points], margin=0), Scale([p[1] for p in points])
    height, bottom = 200, 180  # the labels of the x axis are below

    def down(value: Number) -> float:
        return round(bottom * (1 - y(value) / 100), 2)

    grid = [tag("line", class_="grid", x1=0, x2="100%", y1=down(tick), y2=down(tick)) for tick in y.ticks()]
    ends = [(x.low, "start"), (x.high, "end")]
    axis = y_labels({f"{tick:g}": down(tick) for tick in y.ticks()})
    axis += [tag("text", _plain(v), x=f"{x(v)}%", y=height - 4, text_anchor=anchor) for v, anchor in ends]
    drawn, marks = [], []
    for name, line in series.items():
        style = f"s{styles[name] % SERIES_STYLES}"
        path = " ".join(f"{x(a)},{round(100 - y(b), 3)}" for a, b in _thinned(line))
        drawn.append(tag("polyline", tag("title", name), class_=f"line {style}", points=path))
        marks.append(tag("circle", class_=f"dot {style}", cx=f"{x(line[-1][0])}%", cy=down(line[-1][1]), r=3))
    frame = {"viewBox": "0 0 100 100", "preserveAspectRatio": "none"}
    plot = tag("svg", *drawn, x=0, y=0, width="100%", height=bottom, **frame)
    return svg(title, description, height, *grid, plot, *marks, *axis, style="axes")


def legend(styles: Mapping[str, int]) -> Html:
    """Return the legend: the style and name of each row."""
    samples = (
        tag("svg", tag("line", class_=f"line s{n % SERIES_STYLES}", x1=0, x2=32, y1=5, y2=5), width=32, height=10)
        for n in styles.values()
    )
    return tag(
        "ul", *(tag("li", s, tag("span", name)) for s, name in zip(samples, styles, strict=True)), class_="legend"
    )


def strips(rows: Mapping[str, Sequence[float]], reference: float | None, shown: Callable[[float], str]) -> Html:
    """Draw a dot plot: for each row one dot per value, a bar at the mean, and the standard deviation to both sides.

    `reference` is a broken line through all rows. `shown` formats a value.
    """
    means = {name: fmean(row) for name, row in rows.items()}
    spans = {name: stdev(row) if len(row) > 1 else 0.0 for name, row in rows.items()}
    ends = [means[name] + sign * spans[name] for name in rows for sign in (-1, 1)]
    x = Scale([*ends, *(v for row in rows.values() for v in row), *([] if reference is None else [reference])])
    ruler = [] if reference is None else [_vertical("reference", x(reference), 0, 28)]
    items = []
    for number, (name, row) in enumerate(rows.items()):
        mean, span = means[name], spans[name]
        words = f"{', '.join(map(shown, row))}; mean {shown(mean)}"
        dots = [tag("circle", class_=f"seed s{number % SERIES_STYLES}", cx=f"{x(v)}%", cy=14, r=5) for v in row]
        base = tag("line", class_="grid", x1=0, x2="100%", y1=14, y2=14)
        deviation = tag("line", class_="spread", x1=f"{x(mean - span)}%", x2=f"{x(mean + span)}%", y1=14, y2=14)
        marks = (base, *ruler, *dots, deviation, _vertical("mean", x(mean), 4, 24))
        items.append(tag("li", tag("span", name), svg(name, words, 28, *marks)))
    ticks = (tag("text", shown(v), x=f"{x(v)}%", y=12, text_anchor=anchor(x(v))) for v in x.ticks())
    items.append(tag("li", tag("span"), tag("svg", *ticks, width="100%", height=16, aria_hidden="true")))
    return tag("ol", *items, class_="strips")


def histogram(
    title: str, back: tuple[str, Sequence[int]], front: tuple[str, Sequence[int]], mark: tuple[str, float] | None
) -> Html:
    """Draw two sets of values in [0, 1] as shares of each set, with wide bars behind narrow bars.

    A set is a pair of its name and its counts in bins of equal width. `mark` is a named value on the x axis.
    """
    shares = [[count / max(sum(counts), 1) for count in counts] for _, counts in (back, front)]
    top, bottom, height = max(map(max, shares)) or 1.0, 150, 170
    width = 100 / len(shares[0])
    bars = []
    for (name, _), set_shares, style, inset in zip((back, front), shares, ("back", "front"), (0.04, 0.3), strict=True):
        for k, share in enumerate(set_shares):
            tall = round((bottom - 20) * share / top, 2)
            span = f"{k * width / 100:g} to {(k + 1) * width / 100:g}"
            box = {"x": f"{(k + inset) * width:.3f}%", "width": f"{(1 - 2 * inset) * width:.3f}%"}
            hint = tag("title", f"{name}, {span}: {share:.1%}")
            bars += [tag("rect", hint, class_=style, y=bottom - tall, height=tall, **box)] if share else []
    axis = [
        tag("line", class_="grid", x1=0, x2="100%", y1=bottom, y2=bottom),
        *(
            tag("text", f"{v:g}", x=f"{100 * v}%", y=height - 4, text_anchor=anchor)
            for v, anchor in ((0, "start"), (0.5, "middle"), (1, "end"))
        ),
        tag("text", f"highest bar: {top:.0%}", x=0, y=10),
    ]
    if mark is not None:
        side = {"text_anchor": "end", "dx": -5} if mark[1] > 0.5 else {"dx": 5}
        axis.append(_vertical("reference", round(100 * mark[1], 3), 12, bottom))
        axis.append(tag("text", f"{mark[0]} {mark[1]:.3f}", x=f"{100 * mark[1]:.3f}%", y=22, **side))
    words = f"Wide bars: {back[0]}, {sum(back[1]):,} images. Narrow bars: {front[0]}, {sum(front[1]):,} images."
    return svg(title, words, height, *bars, *axis)


def bar(share: float) -> Html:
    """Return a cell with a bar. Screen readers do not read it, so the number must be in another cell."""
    drawn = tag("rect", class_="front", width=f"{100 * share:.2f}%", height=10, y=4)
    return tag("td", tag("svg", drawn, width="100%", height=18, aria_hidden="true"), class_="bar")


def anchor(percent: Number) -> str:
    """Return where the label of a place on the x axis is held, so that it stays within the chart."""
    return "middle" if percent < 95 else "end"


def _plain(value: Number) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _vertical(style: str, x: Number, top: int, bottom: int) -> Html:
    return tag("line", class_=style, x1=f"{x}%", x2=f"{x}%", y1=top, y2=bottom)


def _thinned(line: Sequence[Point]) -> Sequence[Point]:
    """Return every n-th point and the last one."""
    step = -(-len(line) // MOST_POINTS)
    kept = list(line[::step])
    return kept if kept[-1] == line[-1] else [*kept, line[-1]]
