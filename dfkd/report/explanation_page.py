"""The HTML page of `dfkd explain`, with tables, images and Grad-CAM maps."""

from collections import Counter
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from dfkd.report.answers import CASES, Answers, Explanation, facts, pairs_of
from dfkd.report.charts import bar, figure, legend, lines
from dfkd.report.gallery import image_tag
from dfkd.report.knowledge_page import knowledge_section
from dfkd.report.markup import Html, definitions, join, section, table, tag, write_page
from dfkd.system.text import class_name
from dfkd.training.evaluate import CALIBRATION_BINS

PAIRS = 20
"""Number of class pairs that the page lists."""
WARM = np.array([255.0, 120.0, 0.0])
"""Colour of a map where its value is 1."""


def write(path: Path, found: Explanation) -> None:
    """Write the page."""
    write_page(
        path,
        f"{Path(found.student).name} and its teacher",
        definitions(facts(found)),
        _classes(found),
        section("Where they disagree", pair_table(found)),
        _part("Reliability", reliability(found.answers)),
        _part("Images on which they disagree", gallery(found)),
        knowledge_section(found.knowledge, found.raw),
    )


def _part(heading: str, content: Html) -> Html:
    """Return a section, or nothing if its content is empty."""
    return section(heading, content) if content else content


def _classes(found: Explanation) -> Html:
    """Return the table of classes, the largest loss of accuracy first.

    An image counts for its label, or for the teacher's prediction if there are no labels. Without labels, the
    disagreement replaces the loss of accuracy.
    """
    answers, labels = found.answers, found.answers.labels
    by = answers.teacher if labels is None else labels
    rows = []
    for k in np.unique(by[by >= 0]).tolist():
        of = by == k
        cells = [class_name(k, found.names), f"{of.sum():,}"]
        lost = float(answers.differ[of].mean())
        if labels is not None:
            theirs, ours = (float((side[of] == k).mean()) for side in (answers.teacher, answers.student))
            lost = theirs - ours
            cells += [f"{theirs:.1%}", f"{ours:.1%}", f"{100 * lost:+.1f}"]
        agreement = 1 - float(answers.differ[of].mean())
        instead = Counter(answers.student[of & answers.differ].tolist()).most_common(1)
        cells += [f"{agreement:.1%}", class_name(instead[0][0], found.names) if instead else "-"]
        rows.append((-lost, cells))
    accuracy = [] if labels is None else ["teacher", "student", "lost, points"]
    head = ["class", "images", *accuracy, "agreement", "most frequent other answer"]
    rows.sort(key=lambda row: row[0])
    by_words = "by the teacher's answer" if labels is None else "by label"
    body = [cells for _, cells in rows]
    return section("Classes", table(f"Classes {by_words}, those that lost most first", head, body))


def pair_table(found: Explanation) -> Html:
    """Return the table of the most frequent pairs of different predictions."""
    pairs = pairs_of(found)
    if not pairs:
        return tag("p", "They predict the same class for every image.")
    most = pairs[0][2]
    body = [
        [class_name(a, found.names), class_name(b, found.names), tag("td", bar(n / most), class_="bar"), f"{n:,}"]
        for a, b, n in pairs[:PAIRS]
    ]
    return table(
        f"The most frequent of {len(pairs):,} pairs of classes", ["teacher says", "student says", "", "images"], body
    )


def reliability(answers: Answers) -> Html:
    """Return the chart of accuracy over confidence, in bins of equal width."""
    if answers.labels is None:
        return Html()
    series: dict[str, list[tuple[float, float]]] = {}
    for name, predicted, sure in (
        ("student", answers.student, answers.student_confidence),
        ("teacher", answers.teacher, answers.teacher_confidence),
    ):
        known = np.isfinite(sure)
        right = (predicted == answers.labels)[known]
        bins = np.clip(np.ceil(sure[known] * CALIBRATION_BINS).astype(int) - 1, 0, None)
        series[name] = [
            (float(sure[known][bins == k].mean()), float(right[bins == k].mean())) for k in np.unique(bins).tolist()
        ]
    series["confidence = accuracy"] = [(0.0, 0.0), (1.0, 1.0)]
    styles = {name: number for number, name in enumerate(series)}
    words = (
        f"Accuracy over confidence in {CALIBRATION_BINS} bins of equal width. Below the diagonal a network is too sure."
    )
    return join(
        (
            tag("p", words, class_="note"),
            legend(styles),
            figure("Accuracy over confidence.", lines("Reliability", words, series, styles)),
        )
    )


def gallery(found: Explanation) -> Html:
    """Return the images of largest divergence, with the maps of both networks, grouped by which network is right."""
    answers, rows = found.answers, found.answers.disagreements()[: len(found.images)]
    if not len(rows):
        return Html()
    groups: dict[str, list[Html]] = {case: [] for case in CASES}
    for position, row in enumerate(rows.tolist()):
        label = [] if answers.labels is None else [f"label {class_name(int(answers.labels[row]), found.names)}"]
        said = [
            f"{who}: {class_name(int(side[row]), found.names)}, {sure[row]:.2f}"
            for who, side, sure in (
                ("student", answers.student, answers.student_confidence),
                ("teacher", answers.teacher, answers.teacher_confidence),
            )
        ]
        pixels = found.images[position]
        pictures = [image_tag(pixels, found.raw, "; ".join([*label, *said]), found.origins[position])]
        for who, maps in zip(("student", "teacher"), found.cams, strict=True):
            if maps is not None:
                heat = heated(pixels, maps[position])
                pictures.append(
                    image_tag(heat, found.raw, f"Grad-CAM of the {who}", f"regions that the {who} relies on")
                )
        caption = [tag("div", words) for words in (*label, *said, f"KL {answers.divergence[row]:.2f}")]
        item = tag("figure", tag("div", *pictures, class_="side"), tag("figcaption", *caption))
        groups[answers.case(row)].append(tag("li", item))
    note = (
        "The images with the largest KL divergence. Beside each: where the student's answer comes from, then the "
        "teacher's (Grad-CAM of the class that each predicts, on its deepest map). The warmer, the more."
    )
    parts = []
    for case, items in groups.items():
        if items:
            parts += [tag("h3", CASES[case]), tag("ul", *items, class_="gallery wide")]
    return join((tag("p", note, class_="note"), *parts))


def heated(
    pixels: UInt8[np.ndarray, "height width channels"], heat: Float[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the image in gray, coloured where the map is high."""
    light = pixels.mean(axis=2, keepdims=True) * 0.8 + 25
    mixed = light + heat[..., None] * 0.75 * (WARM - light)
    return mixed.round().clip(0, 255).astype(np.uint8)
