"""Accuracy by class beside the teacher's, with marks at classes that are rare in a row's selections."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from dfkd.formats.manifest import Manifest, read_manifest
from dfkd.report.collect import FinishedRun, Row
from dfkd.report.markup import Html, section, table, tag
from dfkd.system.errors import RequestError
from dfkd.system.portable import expand
from dfkd.system.text import class_name, few

MOST_CLASSES = 30
"""Largest number of classes in the table. If there are more, those that lose most are shown."""
STARVED = 0.1
"""Share of an equal part of the images. A class with fewer images is starved."""
MARK = "†"

ClassMeans = list[float | None]
Opener = Callable[[str], Manifest | None]


def classes(rows: Sequence[Row]) -> Html:
    """Return the section with the top-1 accuracy of every class beside the teacher's."""
    of_row = {row.name: means for row in rows if (means := _by_class(row, "per_class"))}
    teachers = [means for row in rows if (means := _by_class(row, "teacher_per_class"))]
    if not of_row or len({len(means) for means in of_row.values()}) > 1:
        return Html()
    count = len(next(iter(of_row.values())))
    theirs = teachers[0] if len({tuple(means) for means in teachers}) == 1 and len(teachers[0]) == count else None
    held, names = _held(rows, count), _names(rows, count)

    def lost(k: int) -> float:
        """Return how far the rows are below the teacher on a class, or below 1 without a teacher."""
        ours = [means[k] for means in of_row.values() if means[k] is not None]
        target = 1.0 if theirs is None else theirs[k]
        return 0.0 if not ours or target is None else target - fmean(value for value in ours if value is not None)

    shown = sorted(sorted(range(count), key=lambda k: -lost(k))[:MOST_CLASSES])
    body = []
    for k in shown:
        known = [value for means in of_row.values() if (value := means[k]) is not None]
        best = max(known) if len({*known}) > 1 else None
        cells = [_cell(means[k], best, held.get(name, []), k) for name, means in of_row.items()]
        teacher = [_percent(theirs[k])] if theirs is not None else []
        body.append([class_name(k, names), *teacher, *cells, f"{-100 * lost(k):+.1f}" if known else "-"])
    head = [
        "class",
        *(["teacher"] if theirs is not None else []),
        *of_row,
        "mean to teacher" if theirs else "mean to 100 %",
    ]
    most = f" The {len(shown)} of {count:,} classes that lose most." if len(shown) < count else ""
    starving = _starved_words(of_row, theirs, held, names)
    notes = [*starving, *_unknown(rows, held)]
    legend = f" {MARK}: less than {STARVED:.0%} of an even share of the selected images." if starving else ""
    return section(
        "Classes",
        table(f"Top-1 % of every class, the mean over seeds.{legend}{most}", head, body),
        tag("ul", *(tag("li", words) for words in notes), class_="note") if notes else Html(),
    )


def exits(rows: Sequence[Row]) -> Html:
    """Return the section with the top-1 accuracy of early exits beside the whole student's, for rows with exits."""
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


def starved(images: Sequence[float]) -> list[int]:
    """Return the starved classes, given the number of images of each class."""
    return [k for k, number in enumerate(images) if number * len(images) < STARVED * sum(images)]


def selected_images(run: FinishedRun, opener: Opener) -> list[int] | None:
    """Return the number of images of each predicted class in a run's selections.

    None if the run used no selection, or if one of its selections is no longer in its folder.
    """
    folders = run.config.get("samples") or []
    if run.content is None or not folders or len(folders) != len(run.content.selections):
        return None
    manifests = [opener(expand(folder)) for folder in folders]
    found = [
        manifest.per_class
        for manifest, fingerprint in zip(manifests, run.content.selections, strict=True)
        if manifest is not None and manifest.fingerprint == fingerprint
    ]
    if len(found) < len(folders) or len({*map(len, found)}) > 1:
        return None
    return [sum(numbers) for numbers in zip(*found, strict=True)]


def _held(rows: Sequence[Row], count: int) -> dict[str, list[float]]:
    """Return the selected images of each class by row, averaged over seeds.

    Rows with unknown selections are left out.
    """
    known: dict[str, Manifest | None] = {}

    def opener(folder: str) -> Manifest | None:
        if folder not in known:
            try:
                known[folder] = read_manifest(Path(folder))
            except RequestError:
                known[folder] = None
        return known[folder]

    found = {}
    for row in rows:
        of_runs = [selected_images(run, opener) for run in row.runs]
        if all(images is not None and len(images) == count for images in of_runs):
            found[row.name] = [fmean(column) for column in zip(*filter(None, of_runs), strict=True)]
    return found


def _names(rows: Sequence[Row], count: int) -> tuple[str, ...]:
    """Return the names of the classes; none if no run has them, or if runs have others."""
    known = {run.class_names for row in rows for run in row.runs if run.class_names}
    names = known.pop() if len(known) == 1 else ()
    return names if len(names) == count else ()


def _starved_words(
    of_row: Mapping[str, ClassMeans],
    theirs: ClassMeans | None,
    held: Mapping[str, Sequence[float]],
    names: Sequence[str],
) -> list[str]:
    """Return a sentence for each row with starved classes: its loss on these classes and on the others."""
    found = []
    for name, means in of_row.items():
        missed = starved(held.get(name, []))
        if not missed:
            continue
        listed = few([class_name(k, names) for k in missed], 8)
        words = f"{name}: the selection hardly has {len(missed):,} of {len(means):,} classes ({listed})"
        gaps = {k: _points(means[k], 1.0 if theirs is None else theirs[k]) for k in range(len(means))}
        sides = [
            [gap for k, gap in gaps.items() if (k in missed) == inside and gap is not None] for inside in (True, False)
        ]
        if all(sides):
            to = "100 %" if theirs is None else "the teacher"
            words += f"; {fmean(sides[0]):+.1f} points to {to} there, {fmean(sides[1]):+.1f} elsewhere"
        found.append(f"{words}.")
    return found


def _unknown(rows: Sequence[Row], held: Mapping[str, Sequence[float]]) -> list[str]:
    """Return a sentence that names the rows without marks, if there are any."""
    lacking = [row.name for row in rows if row.name not in held and any(run.config.get("samples") for run in row.runs)]
    return [f"Not marked, because the selections were moved or deleted: {'; '.join(lacking)}."] if lacking else []


def _points(ours: float | None, target: float | None) -> float | None:
    return None if ours is None or target is None else 100 * (ours - target)


def _cell(value: float | None, best: float | None, images: Sequence[float], k: int) -> Html:
    marked = k in starved(images)
    words = f"{images[k]:,.0f} of {sum(images):,.0f} selected images" if images else None
    style = "best" if value is not None and value == best else None
    return tag("td", f"{_percent(value)}{f' {MARK}' if marked else ''}", class_=style, title=words)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _by_class(row: Row, field: str) -> ClassMeans | None:
    """Return the mean over seeds for every class.

    None if no seed has the field, or if the numbers of classes differ.
    """
    found = row.values(field)
    if not found or len({len(values) for values in found}) != 1 or not found[0]:
        return None
    columns = ([value for value in column if value is not None] for column in zip(*found, strict=True))
    return [fmean(column) if column else None for column in columns]
