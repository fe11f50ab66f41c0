"""Two networks' answers to the same images -> figures, the terminal's lines, and a page with images and maps."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from dfkd.models.features.pixel_entropy import SIGNIFICANT, concepts
from dfkd.report.charts import bar, figure, legend, lines
from dfkd.report.gallery import data_uri
from dfkd.report.markup import Html, definitions, section, table, tag, write_page
from dfkd.training.evaluate import CALIBRATION_BINS, calibration_error

PAIRS = 20
"""Pairs of classes that the page lists."""
WARM = np.array([255.0, 120.0, 0.0])
"""The colour of a map where it is 1."""
CASES = {
    "lost": "The teacher is right, the student is not",
    "won": "The student is right, the teacher is not",
    "both": "Both are wrong, with different answers",
    "parted": "Student and teacher part",
}


@dataclass(frozen=True)
class Answers:
    """The classes that student and teacher predict, how sure they are, and how far apart: one value an image."""

    student: Int[np.ndarray, " images"]
    teacher: Int[np.ndarray, " images"]
    student_confidence: Float[np.ndarray, " images"]
    teacher_confidence: Float[np.ndarray, " images"]
    divergence: Float[np.ndarray, " images"]
    """KL(teacher || student) in nats."""
    labels: Int[np.ndarray, " images"] | None = None

    @property
    def differ(self) -> Bool[np.ndarray, " images"]:
        """Where they predict different classes."""
        return self.student != self.teacher

    def parted(self) -> Int[np.ndarray, " parted"]:
        """The images on which they differ, the largest divergence first."""
        rows = np.flatnonzero(self.differ)
        return rows[np.argsort(-np.nan_to_num(self.divergence[rows], nan=np.inf), kind="stable")]

    def case(self, row: int) -> str:
        """Which of `CASES` an image is on which they differ."""
        if self.labels is None:
            return "parted"
        right = [side[row] == self.labels[row] for side in (self.teacher, self.student)]
        return "lost" if right[0] else "won" if right[1] else "both"


@dataclass(frozen=True)
class Knowledge:
    """Pixel-wise entropies of both networks on some images, in nats, and the objects' masks where they are known."""

    pixels: UInt8[np.ndarray, "images height width channels"]
    student: Float[np.ndarray, "images rows columns"]
    teacher: Float[np.ndarray, "images rows columns"]
    masks: Bool[np.ndarray, "images h w"] | None

    def counts(self) -> dict[str, tuple[float, float, float]] | None:
        """For each network the mean number of concepts on the foreground and on the background, and the mean of the
        share of the first; None without masks. Images without a background part, or a concept, do not count.
        """
        if self.masks is None:
            return None
        found = {}
        for name, entropies in (("student", self.student), ("teacher", self.teacher)):
            parts = [shrunk(mask, entropies.shape[1:]) for mask in self.masks]
            pairs = [concepts(e, part) for e, part in zip(entropies, parts, strict=True) if not part.all()]
            shares = [on / (on + off) for on, off in pairs if on + off]
            on, off = np.mean(pairs, axis=0) if pairs else (np.nan, np.nan)
            found[name] = (float(on), float(off), float(np.mean(shares)) if shares else float("nan"))
        return found


@dataclass(frozen=True)
class Explanation:
    """Everything that the page shows."""

    student: str
    teacher: str
    data: str
    answers: Answers
    names: Sequence[str]
    origins: Sequence[str]
    """Of the shown images: the first ones of `Answers.parted`."""
    images: UInt8[np.ndarray, "shown height width channels"]
    raw: bool
    cams: Sequence[Float[np.ndarray, "shown height width"] | None]
    """The student's and the teacher's."""
    knowledge: Knowledge | None


def class_name(number: int, names: Sequence[str]) -> str:
    """A class by its number and name."""
    if number < 0:
        return "not finite"
    return f"{number} {names[number]}" if number < len(names) else str(number)


def shrunk(mask: Bool[np.ndarray, "height width"], size: Sequence[int]) -> Bool[np.ndarray, "rows columns"]:
    """A mask at a lower resolution: true where at least half of the pixels are. Each part has a pixel or more."""
    edges = [np.linspace(0, length, parts + 1) for length, parts in zip(mask.shape, size, strict=True)]
    spans = [[(int(a), max(int(np.ceil(b)), int(a) + 1)) for a, b in pairwise(e)] for e in edges]
    return np.array([[mask[top:end, left:right].mean() >= 0.5 for left, right in spans[1]] for top, end in spans[0]])


def facts(found: Explanation) -> list[tuple[str, str]]:
    """The figures of all images, as words."""
    answers = found.answers
    parted = int(answers.differ.sum())
    lines = [
        ("student", found.student),
        ("teacher", found.teacher),
        ("data", f"{found.data}, {len(answers.student):,} images"),
        ("agreement", f"{1 - answers.differ.mean():.2%}; they part on {parted:,} images"),
        ("KL(teacher || student), nats", f"{np.nanmean(answers.divergence):.4f}, the mean over images"),
    ]
    if answers.labels is None:
        return lines
    cases = Counter(map(answers.case, np.flatnonzero(answers.differ).tolist()))
    for name, predicted, sure in (
        ("student", answers.student, answers.student_confidence),
        ("teacher", answers.teacher, answers.teacher_confidence),
    ):
        right = predicted == answers.labels
        error = calibration_error(np.nan_to_num(sure), right)
        lines.append((f"{name}'s accuracy", f"{right.mean():.2%}; calibration error {error:.4f}"))
    return [*lines, *((CASES[case].lower(), f"{cases[case]:,} images") for case in ("lost", "won", "both"))]


def terminal_lines(found: Explanation) -> list[str]:
    """What the command prints."""
    pairs = [f"{class_name(a, found.names)} -> {class_name(b, found.names)}: {n:,}" for a, b, n in _pairs(found)[:5]]
    said = [f"{name}: {value}" for name, value in facts(found)]
    return [*said, f"most frequent, teacher -> student: {'; '.join(pairs)}"] if pairs else said


def write(path: Path, found: Explanation) -> None:
    """Write the page."""
    write_page(
        path,
        f"{Path(found.student).name} and its teacher",
        definitions(facts(found)),
        _classes(found),
        _pair_table(found),
        _reliability(found.answers),
        _gallery(found),
        _knowledge(found.knowledge, found.raw),
    )


def _pairs(found: Explanation) -> list[tuple[int, int, int]]:
    """Classes of the teacher and of the student where they differ, the most frequent first."""
    differ = found.answers.differ
    pairs = Counter(zip(found.answers.teacher[differ].tolist(), found.answers.student[differ].tolist(), strict=True))
    return [(a, b, n) for (a, b), n in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))]


def _classes(found: Explanation) -> Html:
    """A row a class: by its label where there is one, else by the teacher's answer; the class that lost most first."""
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
    head = ["class", "images", *accuracy, "agreement", "student says most often, where they part"]
    rows.sort(key=lambda row: row[0])
    by_words = "by the teacher's answer" if labels is None else "by label"
    body = [cells for _, cells in rows]
    return section("Classes", table(f"Classes {by_words}, those that lost most first", head, body))


def _pair_table(found: Explanation) -> Html:
    pairs = _pairs(found)
    if not pairs:
        return section("Where they part", tag("p", "They predict the same class for every image."))
    most = pairs[0][2]
    body = [
        [class_name(a, found.names), class_name(b, found.names), tag("td", bar(n / most), class_="bar"), f"{n:,}"]
        for a, b, n in pairs[:PAIRS]
    ]
    return section(
        "Where they part",
        table(
            f"The most frequent of {len(pairs):,} pairs of classes",
            ["teacher says", "student says", "", "images"],
            body,
        ),
    )


def _reliability(answers: Answers) -> Html:
    """Accuracy over confidence, in bins of equal width."""
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
    return section(
        "Reliability",
        tag("p", words, class_="note"),
        legend(styles),
        figure("Accuracy over confidence.", lines("Reliability", words, series, styles)),
    )


def _gallery(found: Explanation) -> Html:
    """The images on which they part most, with the maps of both networks, grouped by who is right."""
    answers, parted = found.answers, found.answers.parted()[: len(found.images)]
    if not len(parted):
        return Html()
    groups: dict[str, list[Html]] = {case: [] for case in CASES}
    for position, row in enumerate(parted.tolist()):
        label = [] if answers.labels is None else [f"label {class_name(int(answers.labels[row]), found.names)}"]
        said = [
            f"{who}: {class_name(int(side[row]), found.names)}, {sure[row]:.2f}"
            for who, side, sure in (
                ("student", answers.student, answers.student_confidence),
                ("teacher", answers.teacher, answers.teacher_confidence),
            )
        ]
        pixels = found.images[position]
        pictures = [_picture(pixels, found.raw, found.origins[position], "; ".join([*label, *said]))]
        for who, maps in zip(("student", "teacher"), found.cams, strict=True):
            if maps is not None:
                heat = heated(pixels, maps[position])
                pictures.append(_picture(heat, found.raw, f"what the {who} looks at", f"Grad-CAM of the {who}"))
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
    return section("Images on which they part", tag("p", note, class_="note"), *parts)


def _knowledge(known: Knowledge | None, raw: bool) -> Html:
    """Entropy maps, and the counts of concepts."""
    if known is None:
        return Html()
    counts = known.counts()
    parts: list[Html] = []
    if counts is not None:
        body = [[name, *(f"{value:.3g}" for value in values)] for name, values in counts.items()]
        head = ["network", "on the foreground", "on the background", "share on the foreground"]
        parts.append(table("Visual concepts, means over images", head, body))
    items = []
    for pixels, ours, theirs in zip(known.pixels, known.student, known.teacher, strict=True):
        pictures = [_picture(pixels, raw, "", "image")]
        for who, entropy in (("student", ours), ("teacher", theirs)):
            pictures.append(_picture(gray(entropy), True, f"entropy of the {who}", f"pixel-wise entropy of the {who}"))
        words = f"mean entropy: student {ours.mean():.2f}, teacher {theirs.mean():.2f} nats"
        items.append(tag("li", tag("figure", tag("div", *pictures, class_="side"), tag("figcaption", words))))
    note = (
        "Beside each image the pixel-wise entropy of the student, then of the teacher: how much noise a part bears "
        "before the deepest features change. Dark parts are used, light ones discarded; each map has its own range. A "
        f"visual concept is a part whose entropy is {SIGNIFICANT} nats below the mean of the background's "
        "(arXiv 2003.03622)."
    )
    gallery = tag("ul", *items, class_="gallery wide")
    return section("What is used of an image", tag("p", note, class_="note"), *parts, gallery)


def heated(
    pixels: UInt8[np.ndarray, "height width channels"], heat: Float[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """An image in gray, coloured where the map is high."""
    light = pixels.mean(axis=2, keepdims=True) * 0.8 + 25
    mixed = light + heat[..., None] * 0.75 * (WARM - light)
    return mixed.round().clip(0, 255).astype(np.uint8)


def gray(values: Float[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "rows columns 1"]:
    """Values as a gray image from the lowest, black, to the highest."""
    low, high = float(values.min()), float(values.max())
    return np.round(255 * (values - low) / (high - low or 1.0)).astype(np.uint8)[..., None]


def _picture(pixels: UInt8[np.ndarray, "h w channels"], raw: bool, title: str, alt: str) -> Html:
    return tag(
        "img",
        src=data_uri(pixels, raw),
        alt=alt,
        title=title or None,
        class_="pixelated" if raw else None,
        loading="lazy",
    )
