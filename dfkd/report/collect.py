"""Run folders as rows of a comparison. Runs of one name are the seeds of one row."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from dfkd.config import DistillConfig
from dfkd.config.option import named
from dfkd.config.tables import differences
from dfkd.formats.run_records import (
    CONFIG,
    HINT,
    METRICS,
    RESULT,
    DistillContent,
    Result,
    read_distillation,
    read_result,
)
from dfkd.system.checksums import check_file
from dfkd.system.errors import RequestError

NEEDED = (
    *("name", "seed", "source", "student_parameters", "top1", "agreement", "teacher_top1", "test_images"),
    *("steps", "images_seen", "teacher_forwards", "seconds", "generator_steps"),
)
"""Fields of a result that a comparison reads. A result may have more."""
WORDS = ("name", "source")
"""Fields that are text. The others are numbers."""
CURVED = ("loss", "agreement")
"""Metrics that are drawn over steps."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: its options, content, result and metrics. A run that is read from a CSV has its result only."""

    folder: str
    config: Mapping[str, Any]
    content: DistillContent | None
    result: Result
    metrics: list[dict[str, Any]]
    class_names: tuple[str, ...] = ()
    """Names of the student's classes, if known."""


@dataclass(frozen=True)
class Row:
    """Runs of one name, ordered by seed."""

    name: str
    runs: tuple[FinishedRun, ...]

    def values(self, field: str) -> list[Any]:
        """Return a field of the result for each run that has it. For example, a run without a test has no accuracy."""
        return [value for run in self.runs if (value := getattr(run.result, field)) is not None]

    def mean(self, field: str) -> float | None:
        """Return the mean of a field over the runs, or None if no run has it."""
        values = self.values(field)
        return fmean(values) if values else None

    def deviation(self, field: str) -> float | None:
        """Return the sample standard deviation of a field over the seeds, or None for fewer than two."""
        values = self.values(field)
        return stdev(values) if len(values) > 1 else None


def collect(folders: Sequence[str]) -> list[Row]:
    """Read run folders and group them into rows, the best mean accuracy first, rows without a test last.

    Raises: RequestError for a folder that is not a finished run, and for two runs of the same name and seed. It is also
    raised if runs of one name differ in another field, which the message names.
    """
    if not folders:
        raise RequestError("there is nothing to compare: give RUN folders")
    names: dict[str, list[FinishedRun]] = {}
    for folder in folders:
        run = read_run(folder)
        names.setdefault(run.result.name, []).append(run)
    return best_first([_row(name, runs) for name, runs in names.items()])


def best_first(rows: Sequence[Row]) -> list[Row]:
    """Sort rows by mean accuracy, the best first, rows without a test last."""
    return sorted(rows, key=lambda row: -math.inf if (mean := row.mean("top1")) is None else mean, reverse=True)


def read_run(folder: str) -> FinishedRun:
    """Read one run. Raises: RequestError if the folder is not a run, is not finished or cannot be read."""
    path = Path(folder)
    if not (path / CONFIG).exists():
        what = "does not exist" if not path.exists() else f"is not a run: it has no {CONFIG}"
        raise RequestError(f"{folder} {what}; dfkd distill makes one")
    if not (path / RESULT).exists():
        raise RequestError(
            f"{folder} is not finished; leave it out, or give its dfkd distill command again to resume it"
        )
    request, result = read_distillation(path), read_result(path, Result)
    if METRICS in result.files:
        check_file(path / METRICS, result.files[METRICS], HINT)
    metrics, names = read_metrics(path / METRICS), request.model.class_names
    return FinishedRun(folder, request.distill.table, request.content, result, metrics, names)


def curve(row: Row, field: str) -> list[tuple[float, float]]:
    """Return a metric over steps, averaged over the seeds, at the steps that all seeds logged."""
    logged = [{m["step"]: m[field] for m in run.metrics if math.isfinite(m.get(field, math.nan))} for run in row.runs]
    common = set.intersection(*map(set, logged))
    return [(float(step), fmean(run[step] for run in logged)) for step in sorted(common)]


def settings(row: Row) -> dict[str, str]:
    """Return every option of a row with the value that was used. Values that differ between seeds are listed."""
    listed: dict[str, list[str]] = {}
    for run in row.runs:
        for name, value in _settings(run).items():
            values = listed.setdefault(name, [])
            if value not in values:
                values.append(value)
    return {name: ", ".join(values) for name, values in listed.items()}


def _row(name: str, runs: Sequence[FinishedRun]) -> Row:
    seeds: dict[tuple[int, int], FinishedRun] = {}
    first = runs[0]
    for run in runs:
        twin = seeds.setdefault(_seeds(run), run)
        if twin is not run:
            raise RequestError(
                f"{twin.folder} and {run.folder} are both seed {run.result.seed} of {name!r}; leave one out, or "
                "give the dfkd distill command of one again with another --name, which trains nothing"
            )
        different = differences(_beside_seeds(first), _beside_seeds(run))
        if different:
            raise RequestError(
                f"{first.folder} and {run.folder} are both called {name!r} but differ in {'; '.join(different)}; "
                "only seeds may differ: distill one with another --name"
            )
    return Row(name, tuple(seeds[seed] for seed in sorted(seeds)))


def _seeds(run: FinishedRun) -> tuple[int, int]:
    """Return the run's seed, and the seed of its student's initial weights."""
    own = (run.content.options if run.content else {}).get("student_seed")
    return run.result.seed, own if isinstance(own, int) else run.result.seed


def _beside_seeds(run: FinishedRun) -> dict[str, Any]:
    """Return what all runs of a row must share: all but seeds, random weights and the selections' fingerprints."""
    content = run.content
    if content is None:
        return {}
    given = run.result.begins == "given" and "run" not in content.student.table  # a run depends on its seed
    options = {key: value for key, value in content.options.items() if key not in ("seed", "student", "student_seed")}
    student = {key: value for key, value in content.student.table.items() if key != "weights" or given}
    if "specialists" in content.options:  # the images of each seed decide which classes form a group
        student["architecture"] = re.sub(r",?\bgroups=('[^']*'|[^,]*)", "", str(student["architecture"]))
    own = {"options": options, "student": student, "selections": len(content.selections)}
    table = {key: value for key, value in content.table.items() if key != "peers"}  # peers have seeds, too
    if run.config.get("mixing") == "learned":  # the images of each seed decide the teachers' weights
        own["teacher"] = {"architecture": content.teacher.architecture}
    return {**table, **own, "begins": run.result.begins}


def _settings(run: FinishedRun) -> dict[str, str]:
    content = run.content
    if content is None:
        return {}
    hidden = named(DistillConfig, lambda option: not option.shown)
    options = {**run.config, **content.options, "normalize": content.normalize}
    shown = {name: value for name, value in options.items() if name not in hidden}
    shown["selected"] = list(content.selected)
    shown["teacher weights"] = content.teacher.weights[:12]
    shown |= {**content.compute.table, **content.versions}
    return {name: ", ".join(map(str, v)) if isinstance(v, list) else str(v) for name, v in shown.items()}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the logged rows, without a line that a kill cut off. A run without metrics has no rows."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and all(type(row.get(key, 0)) in (int, float) for key in ("step", *CURVED)):
            found += [row] if "step" in row else []
    return found
