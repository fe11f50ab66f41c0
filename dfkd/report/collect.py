"""Run folders -> rows: the runs of one name are its seeds."""

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
from dfkd.formats.run_folder import METRICS
from dfkd.formats.run_records import (
    CONFIG,
    HINT,
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
"""Fields of a result that a comparison reads; a result may have more."""
WORDS = ("name", "source")
"""The fields that are text; the others are numbers."""
CURVED = ("loss", "agreement")
"""Fields of the metrics that are drawn."""


@dataclass(frozen=True)
class FinishedRun:
    """What a finished run's folder says: its options, what decided it (neither from a CSV), its result, its metrics."""

    folder: str
    config: Mapping[str, Any]
    content: DistillContent | None
    result: Result
    metrics: list[dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """The runs of one name, ordered by seed."""

    name: str
    runs: tuple[FinishedRun, ...]

    def values(self, field: str) -> list[Any]:
        """A field of the result over the runs, without those that lack it (no accuracy without a test)."""
        return [value for run in self.runs if (value := getattr(run.result, field)) is not None]

    def mean(self, field: str) -> float | None:
        """Its mean, or None where no run has it."""
        values = self.values(field)
        return fmean(values) if values else None

    def deviation(self, field: str) -> float | None:
        """Its sample standard deviation over the seeds, or None for fewer than two."""
        values = self.values(field)
        return stdev(values) if len(values) > 1 else None


def collect(folders: Sequence[str]) -> list[Row]:
    """Read run folders and group them: the best mean accuracy first, rows without a test last.

    Raises: RequestError for a folder that is no finished run, two runs of the same name and seed, or a name whose runs
    differ in more than their seeds, naming the field.
    """
    if not folders:
        raise RequestError("there is nothing to compare: give RUN folders")
    names: dict[str, list[FinishedRun]] = {}
    for folder in folders:
        run = read_run(folder)
        names.setdefault(run.result.name, []).append(run)
    return best_first([_row(name, runs) for name, runs in names.items()])


def best_first(rows: Sequence[Row]) -> list[Row]:
    """The rows by their mean accuracy, the untested ones last."""
    return sorted(rows, key=lambda row: -math.inf if (mean := row.mean("top1")) is None else mean, reverse=True)


def read_run(folder: str) -> FinishedRun:
    """Read one run. Raises: RequestError where it is none, is not finished or cannot be read."""
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
    return FinishedRun(folder, request.distill.table, request.content, result, read_metrics(path / METRICS))


def curve(row: Row, field: str) -> list[tuple[float, float]]:
    """A metric over steps, the mean over seeds at the steps that all of them logged."""
    logged = [{m["step"]: m[field] for m in run.metrics if math.isfinite(m.get(field, math.nan))} for run in row.runs]
    common = set.intersection(*map(set, logged))
    return [(float(step), fmean(run[step] for run in logged)) for step in sorted(common)]


def settings(row: Row) -> dict[str, str]:
    """How a row was made: every option with the value that was used; values that differ between seeds are listed."""
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
    """The run's seed, and that of its student's weights."""
    own = (run.content.options if run.content else {}).get("student_seed")
    return run.result.seed, own if isinstance(own, int) else run.result.seed


def _beside_seeds(run: FinishedRun) -> dict[str, Any]:
    """What the runs of one row have in common: all but seeds, random weights and the selections' fingerprints."""
    content = run.content
    if content is None:
        return {}
    given = run.result.begins == "given" and "run" not in content.student.table  # a run has seeds itself
    options = {key: value for key, value in content.options.items() if key not in ("seed", "student", "student_seed")}
    student = {key: value for key, value in content.student.table.items() if key != "weights" or given}
    if "specialists" in content.options:  # which classes go together is found by each seed's own images
        student["architecture"] = re.sub(r",?\bgroups=('[^']*'|[^,]*)", "", str(student["architecture"]))
    own = {"options": options, "student": student, "selections": len(content.selections)}
    table = {key: value for key, value in content.table.items() if key != "peers"}  # they have seeds, too
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
    """The logged rows; what a kill cut off is left out. A run without metrics has no curves."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and all(type(row.get(key, 0)) in (int, float) for key in ("step", *CURVED)):
            found += [row] if "step" in row else []
    return found
