"""The HTML page of `dfkd explain`."""

from collections import Counter
from pathlib import Path

import numpy as np

from dfkd.report.answers import Explanation, facts
from dfkd.report.disagreements import gallery, pair_table, reliability
from dfkd.report.knowledge import Knowledge
from dfkd.report.knowledge_page import knowledge_section
from dfkd.report.markup import Html, definitions, section, table, write_page
from dfkd.system.text import class_name


def write(path: Path, found: Explanation, known: Knowledge | None) -> None:
    """Write the page."""
    write_page(
        path,
        f"{Path(found.student).name} and its teacher",
        definitions(facts(found)),
        _classes(found),
        section("Where they disagree", pair_table(found)),
        _part("Reliability", reliability(found.answers)),
        _part("Images on which they disagree", gallery(found)),
        knowledge_section(known, found.raw),
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
    caption = f"Classes {by_words}, those that lost most first. The last column has the student's most frequent answer "
    return section("Classes", table(f"{caption}among those that differ from the teacher's.", head, body))
