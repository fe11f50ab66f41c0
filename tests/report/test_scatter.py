from xml.etree import ElementTree

import pytest

from dfkd.report.scatter import Spot, pareto_front, scatter

SPOTS = {"a": Spot(10, 0.5), "b": Spot(10, 0.6), "c": Spot(20, 0.55), "d": Spot(40, 0.9, 4, 0.05)}
STYLES = {name: number for number, name in enumerate(SPOTS)}


def chart(spots):
    return ElementTree.fromstring(scatter("t", spots, STYLES, lambda v: f"{v:.0%}", 0.95))


def test_pareto_front__has_the_rows_that_none_beats_at_its_cost() -> None:
    assert pareto_front(SPOTS) == ["b", "d"]
    assert pareto_front({"a": Spot(1, 0.5), "b": Spot(2, 0.5)}) == ["a"]


def test_scatter__puts_rows_where_their_values_are_with_error_bars() -> None:
    tree = chart(SPOTS)
    at = [float(sign.attrib["x"].rstrip("%")) for sign in tree.findall("svg") if "viewBox" not in sign.attrib]
    at.reverse()  # the first row is drawn last, in front of the others
    pad = 100 * 0.06 / 1.12  # costs from 10 to 44, where the last error bar ends
    assert at == pytest.approx([pad + (100 - 2 * pad) * (cost - 10) / 34 for cost in (10, 10, 20, 40)], abs=0.01)
    bars = [line.attrib for line in tree.findall("line") if line.attrib["class"].startswith("error")]
    assert [bar["class"] for bar in bars] == ["error s3", "error s3"]
    assert bars[0]["x1"] == bars[0]["x2"] and bars[1]["y1"] == bars[1]["y2"]
    assert len({sign.find("path").attrib["d"] for sign in tree.findall("svg") if sign.find("path") is not None}) == 4


def test_scatter__has_a_logarithmic_axis_for_costs_far_apart() -> None:
    spots = {"a": Spot(1, 0.5), "b": Spot(10, 0.6), "c": Spot(100, 0.7)}
    tree = chart(spots)
    at = [float(sign.attrib["x"].rstrip("%")) for sign in tree.findall("svg") if "viewBox" not in sign.attrib]
    assert at[1] - at[0] == pytest.approx(at[2] - at[1])
    assert "logarithmic" in tree.find("desc").text


def test_scatter__rows_after_the_last_color_look_alike() -> None:
    spots = {str(number): Spot(number, number / 20) for number in range(10)}
    styles = {name: number for number, name in enumerate(spots)}
    tree = ElementTree.fromstring(scatter("t", spots, styles, lambda v: f"{v:.0%}"))
    marks = [sign.find("path").attrib["class"] for sign in tree.findall("svg") if sign.find("path") is not None]
    assert marks == ["spot others"] * 2 + [f"spot s{number}" for number in range(7, -1, -1)]


def test_scatter__of_one_row_stands_in_the_middle() -> None:
    sign = next(sign for sign in chart({"a": Spot(5, 0.5)}).findall("svg") if "viewBox" not in sign.attrib)
    assert sign.attrib["x"] == "50.0%"
