import re
from xml.etree import ElementTree

import pytest

from dfkd.report.charts import MOST_POINTS, Scale, histogram, legend, lines, strips


def numbers(markup: str, element: str, attribute: str) -> list[float]:
    tree = ElementTree.fromstring(f"<x>{markup}</x>")
    return [float(e.attrib[attribute].rstrip("%")) for e in tree.iter(element) if attribute in e.attrib]


def test_scale_and_ticks() -> None:
    scale = Scale([10, 20], margin=0)
    assert [scale(v) for v in (10, 15, 20)] == [0, 50, 100]
    assert Scale([0, 1], margin=0).ticks() == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert Scale([0.1, 0.93]).ticks() == [0.2, 0.4, 0.6, 0.8]


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0])
def test_a_single_value_stands_in_the_middle(value: float) -> None:
    scale = Scale([value])
    assert scale(value) == 50
    assert all(scale.low <= tick <= scale.high for tick in scale.ticks())


def test_lines_put_points_where_their_values_are() -> None:
    markup = lines("t", "d", {"<a>": [(0.0, 0.0), (10.0, 1.0)], "b": [(5.0, 0.5)]}, {"<a>": 0, "b": 9})
    tree = ElementTree.fromstring(markup)
    first, second = (line.attrib for line in tree.iter("polyline"))
    pad = 100 * 0.05 / 1.1  # the margin above and below, of the whole height
    points = [tuple(map(float, p.split(","))) for p in first["points"].split()]
    assert points == [(0, pytest.approx(100 - pad, abs=0.01)), (100, pytest.approx(pad, abs=0.01))]
    assert second["points"] == "50.0,50.0"
    assert first["class"] == "line s0" and second["class"] == "line s1"  # styles repeat after eight
    assert [e.text for e in tree.iter("title")] == ["t", "<a>", "b"]
    assert numbers(markup, "circle", "cx") == [100, 50]


def test_long_lines_are_thinned_and_keep_their_ends() -> None:
    line = [(float(k), float(k)) for k in range(10 * MOST_POINTS + 5)]
    (points,) = re.findall(r'points="([^"]+)"', lines("t", "d", {"a": line}, {"a": 0}))
    xs = [float(p.split(",")[0]) for p in points.split()]
    assert len(xs) <= MOST_POINTS + 1
    assert xs[0] == 0 and xs[-1] == 100


def test_strips_show_seeds_mean_deviation_and_reference() -> None:
    # mean 0.3, sample deviation sqrt(0.02) = 0.1414: from 0.1586 to 0.4414; the range is 0.1586 to 0.9 with 5 % margins
    markup = strips({"a": [0.2, 0.4], "b": [0.5]}, 0.9, lambda v: f"{v:.0%}")
    low, high = 0.3 - 0.02**0.5, 0.9
    pad = 0.05 * (high - low)

    def x(value: float) -> float:
        return 100 * (value - low + pad) / (high - low + 2 * pad)

    assert numbers(markup, "circle", "cx") == pytest.approx([x(0.2), x(0.4), x(0.5)], abs=0.01)
    tree = ElementTree.fromstring(markup)
    at = {c: [e.attrib for e in tree.iter("line") if e.attrib["class"] == c] for c in ("mean", "spread", "reference")}
    assert [float(e["x1"][:-1]) for e in at["mean"]] == pytest.approx([x(0.3), x(0.5)], abs=0.01)
    assert [float(e["x1"][:-1]) for e in at["reference"]] == pytest.approx([x(0.9)] * 2, abs=0.01)
    first = at["spread"][0]
    assert float(first["x1"][:-1]) == pytest.approx(x(low), abs=0.01)
    assert float(first["x2"][:-1]) == pytest.approx(x(0.6 - low), abs=0.01)
    assert "20%, 40%; mean 30%" in markup


def test_histogram_shows_shares_of_each_set() -> None:
    markup = histogram("t", ("pool", [30, 10]), ("selected", [0, 5]), ("threshold", 0.6))
    # 75 %, 25 % and nothing, 100 %; the highest bar is 130 pixels, an empty one is not drawn
    assert numbers(markup, "rect", "height") == pytest.approx([97.5, 32.5, 130])
    assert numbers(markup, "rect", "x") == pytest.approx([2, 52, 65])
    assert "selected, 0.5 to 1: 100.0%" in markup and "threshold 0.600" in markup
    assert '<line class="reference" x1="60.0%"' in markup


def test_empty_histogram_is_drawn() -> None:
    assert "<rect" not in histogram("t", ("pool", [0, 0]), ("selected", [0, 0]), None)


def test_legend_pairs_names_with_styles() -> None:
    markup = legend({"<a>": 0, "b": 3})
    assert re.findall(r"line (s\d).*?<span>(.*?)</span>", markup) == [("s0", "&lt;a&gt;"), ("s3", "b")]
