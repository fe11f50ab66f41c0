"""Parts of a page about the predictions of student and teacher: a table, a chart, and images with Grad-CAM maps."""

import numpy as np
from jaxtyping import Float, UInt8

from dfkd.report.answers import CASES, Answers, Explanation, pairs_of
from dfkd.report.charts import bar, figure, legend, lines
from dfkd.report.image_tags import gallery_item, image_tag
from dfkd.report.markup import Html, join, table, tag
from dfkd.system.text import class_name
from dfkd.training.calibration import CALIBRATION_BINS, bins_of

PAIRS = 20
"""Number of class pairs that the page lists."""
WARM = np.array([255.0, 120.0, 0.0])
"""Color of a map where its value is 1."""


def pair_table(found: Explanation) -> Html:
    """Return the table of the most frequent pairs of different predictions."""
    pairs = pairs_of(found)
    if not pairs:
        return tag("p", "They predict the same class for every image.")
    most = pairs[0][2]
    body = [
        [class_name(a, found.names), class_name(b, found.names), bar(n / most), f"{n:,}"] for a, b, n in pairs[:PAIRS]
    ]
    return table(
        f"The most frequent of {len(pairs):,} pairs of classes", ["teacher says", "student says", "", "images"], body
    )


def reliability(answers: Answers) -> Html:
    """Return the chart of accuracy over confidence, in bins of equal width."""
    if answers.labels is None:
        return Html()
    series: dict[str, list[tuple[float, float]]] = {}
    for name, predicted, sure in answers.sides:
        known = np.isfinite(sure)
        right = (predicted == answers.labels)[known]
        bins = bins_of(sure[known])
        series[name] = [
            (float(sure[known][bins == k].mean()), float(right[bins == k].mean())) for k in np.unique(bins).tolist()
        ]
    series["confidence = accuracy"] = [(0.0, 0.0), (1.0, 1.0)]
    styles = {name: number for number, name in enumerate(series)}
    words = f"Accuracy over confidence in {CALIBRATION_BINS} equal bins. Below the diagonal a network is overconfident."
    return tag("div", figure(words, lines("Reliability", words, series, styles)), legend(styles), class_="narrow")


def gallery(found: Explanation) -> Html:
    """Return the images of largest divergence, with the maps of both networks, grouped by which network is right."""
    answers, rows = found.answers, found.answers.disagreements()[: len(found.images)]
    if not len(rows):
        return Html()
    groups: dict[str, list[Html]] = {case: [] for case in CASES}
    for position, row in enumerate(rows.tolist()):
        label = [] if answers.labels is None else [f"label {class_name(int(answers.labels[row]), found.names)}"]
        said = [
            f"{who}: {class_name(int(side[row]), found.names)}, {sure[row]:.2f}" for who, side, sure in answers.sides
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
        groups[answers.case(row)].append(gallery_item(tag("div", *pictures, class_="side"), *caption))
    note = (
        "The images with the largest KL divergence. The maps show which parts decide the answer of the student, then "
        "of the teacher (Grad-CAM of the predicted class, on the deepest feature map). Warm colors are decisive."
    )
    parts = []
    for case, items in groups.items():
        if items:
            parts += [tag("h3", CASES[case]), tag("ul", *items, class_="gallery wide")]
    return join((tag("p", note, class_="note"), *parts))


def heated(
    pixels: UInt8[np.ndarray, "height width channels"], heat: Float[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the image in gray, colored where the map is high."""
    light = pixels.mean(axis=2, keepdims=True) * 0.8 + 25
    mixed = light + heat[..., None] * 0.75 * (WARM - light)
    return mixed.round().clip(0, 255).astype(np.uint8)
