"""Reading of a pipeline's TOML file into its stages, in order, each fully configured.

A file looks like this:

    out = "runs/quick"                      the pipeline's folder
    seeds = [0, 1, 2]
    [defaults]                              options of all stages: teacher, pool, normalize, student, steps, test, ...
    [select.confident]                      a selection and its own options
    method = "confidence"
    [generate.made]                         images made from the teacher, named in `samples` like a selection
    method = "deepinversion"
    [distill.confident-kd]                  a row of the comparison: its selections, and its own options
    samples = ["confident"]                 names of selections above, or folders
    loss = ["kd"]
    [distill.adversarial]                   or a generator that learns along with the student
    source = "dfad"
    [distill.smaller]                       or a student that begins as the run of another row, of the same seed
    samples = ["confident"]
    student = "run:confident-kd"
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from dfkd.config import DistillConfig, GenerateConfig, SelectConfig
from dfkd.config.option import field_hints, named
from dfkd.config.stage_table import STAGES, Stage, stage_of
from dfkd.config.tables import check_mapping, from_mapping, layered, load_preset, load_toml
from dfkd.system.errors import RequestError, nearest
from dfkd.system.portable import below, expand
from dfkd.system.remote import is_remote

KINDS = {name: stage for name, stage in STAGES.items() if stage.writes is not None}
"""Stages that a file may have, by the names of their tables."""
RUN = "run:"
"""Prefix of a student that is the run of another row."""
KEYS = ("out", "seeds", "defaults", *KINDS)

StageConfig = SelectConfig | GenerateConfig | DistillConfig


@dataclass(frozen=True)
class Pipeline:
    """The stages of a file, in order, each fully configured."""

    out: Path
    selections: list[SelectConfig | GenerateConfig]
    distillations: list[DistillConfig]

    def part(self, rows: Sequence[str]) -> "Pipeline":
        """Return the distillations of some rows and the stages that they need.

        Raises: RequestError for an unknown row.
        """
        names = {d.name or "" for d in self.distillations}
        for row in rows:
            if row not in names:
                raise RequestError(f"--only {row!r} is not a [distill.NAME] of the file{nearest(row, sorted(names))}")
        stages: list[StageConfig] = [*self.selections, *self.distillations]
        wanted: list[StageConfig] = [d for d in self.distillations if d.name in rows]
        while more := [s for s in stages if s not in wanted and any(needs(w, [s]) for w in wanted)]:
            wanted += more
        return Pipeline(
            self.out, [s for s in self.selections if s in wanted], [d for d in self.distillations if d in wanted]
        )


_TYPES: dict[type, str] = {str: "text", list: "a list", dict: "a table"}
"""Types of the entries outside of a stage's table, as in error messages."""


def read_pipeline(path: Path, out: str | None = None) -> Pipeline:
    """Read and check a whole file before anything runs.

    Raises: RequestError for an unknown key, a wrong or missing value, or no distillation at all, naming the table.
    """
    tables = load_toml(path)
    for key in tables:
        if key not in KEYS:
            raise RequestError(f"{path} has {key!r}{nearest(key, KEYS)}")
    folder = expand(out or _typed(tables, "out", str, path, str(Path("runs") / path.stem)))
    if not folder:
        raise RequestError(f"{path}: out is empty; name a folder")
    if is_remote(folder):
        raise RequestError(f"{path}: out = {folder!r} is in an object store; a pipeline needs a folder on this machine")
    seeds = _typed(tables, "seeds", list, path, [0])
    if not seeds or not all(type(seed) is int for seed in seeds) or len({*seeds}) < len(seeds):
        raise RequestError(f"{path}: seeds = {seeds} is not a list of different whole numbers")
    defaults = _typed(tables, "defaults", dict, path, {})
    known = {name for stage in KINDS.values() for name in field_hints(stage.options)}
    for key in defaults:
        if key.replace("-", "_") not in known:
            raise RequestError(f"{path} [defaults] has no option {key!r}{nearest(key, known)}")
    made = {name: _typed(tables, name, dict, path, {}) for name, kind in KINDS.items() if kind.writes == "selection"}
    distills = _typed(tables, "distill", dict, path, {})
    if not distills:
        raise RequestError(f"{path} has no [distill.NAME] table: there is nothing to compare")
    twice = made["select"].keys() & made["generate"].keys()
    if twice:
        raise RequestError(f"{path}: {min(twice)!r} is the name of a selection and of generated images")
    folders = _Folders(folder, [*made["select"], *made["generate"]], [*distills])
    selections: list[SelectConfig | GenerateConfig] = []
    for seed in seeds:
        for kind, tables_of in made.items():
            for name, table in tables_of.items():
                where, values = _options(KINDS[kind], name, table, defaults, path)
                own = folders.resolved(values, seed, where) | {"seed": seed, "out": folders.samples(name, seed)}
                selections.append(from_mapping(KINDS[kind].options, values | own, where))
    distillations = []
    for seed in seeds:  # outer loop: every row has its first seed before any has its second
        for name, table in distills.items():
            where, values = _options(KINDS["distill"], name, table, defaults, path)
            if not values.get("samples") and values.get("source") is None:
                raise RequestError(f"{where}: no samples; name selections of this file, or folders, or a source")
            own = {"name": name, "seed": seed, "out": folders.run(name, seed)}
            distillations.append(
                from_mapping(DistillConfig, values | folders.resolved(values, seed, where) | own, where)
            )
    _check_order([*selections, *distillations], path)
    return Pipeline(Path(folder), selections, distillations)


def _check_order(stages: Sequence[StageConfig], path: Path) -> None:
    """Raise RequestError if stages need each other, or themselves."""
    left = list(stages)
    while left:
        blocked = [stage for stage in left if needs(stage, left)]
        if len(blocked) == len(left):
            names = ", ".join(Path(stage.out).name for stage in left)
            raise RequestError(f"{path}: {names} need their own or each other's results; remove one of these uses")
        left = blocked


def _options(
    stage: Stage, name: str, table: Any, defaults: Mapping[str, Any], path: Path
) -> tuple[str, dict[str, Any]]:
    """Return the name of a table for messages, and its options over its preset and the file's defaults."""
    where, config = f"{path} [{stage.name}.{name}]", stage.options
    if not isinstance(table, dict):
        raise RequestError(f"{where} is not a table; write its options as key = value below it")
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise RequestError(f"{where}: the name becomes a folder; use letters, digits, '-', '_' and '.'")
    known = named(config, lambda option: option.shared)
    shared = {key: value for key, value in defaults.items() if key.replace("-", "_") in known}
    shared, own = check_mapping(config, shared, f"{path} [defaults]"), check_mapping(config, table, where)
    preset = own.get("preset") or shared.get("preset")
    recipe = load_preset(preset, stage) if preset else {}
    for key in ("out", "seed", *(("name", "also") if stage.writes == "run" else ("part",))):
        if key in shared or key in own or (key in recipe and key in ("part", "also")):
            raise RequestError(f"{where}: {key!r} cannot be set in a pipeline; remove it")
    below = (shared, recipe) if own.get("preset") else (recipe, shared)  # the table that names a preset overrides it
    return where, reduce(layered, (*below, own))


class _Folders:
    """Folders of a pipeline's selections, generated images and runs.

    Any text that does not name one of them is a folder.
    """

    def __init__(self, folder: str, known: Sequence[str], rows: Sequence[str]) -> None:
        self._folder, self._known, self._rows = folder, known, rows

    def samples(self, name: str, seed: int) -> str:
        return below(self._folder, "samples", f"{name}-seed{seed}")

    def run(self, row: str, seed: int) -> str:
        return below(self._folder, "runs", f"{row}-seed{seed}")

    def resolved(self, values: Mapping[str, Any], seed: int, where: str) -> dict[str, Any]:
        """Return the options that name selections or runs of the file, as folders."""
        found: dict[str, Any] = {}
        if "samples" in values:
            found["samples"] = [self._one(name, "samples", seed, where) for name in values["samples"]]
        if values.get("fill") is not None:
            found["fill"] = self._one(values["fill"], "fill", seed, where)
        if str(values.get("student")).startswith(RUN):
            row = values["student"].removeprefix(RUN)
            if row not in self._rows:
                raise RequestError(
                    f"{where}: student names the run of {row!r}, no row of this file{nearest(row, self._rows)}"
                )
            found["student"] = self.run(row, seed)
        return found

    def _one(self, name: str, key: str, seed: int, where: str) -> str:
        if name in self._known:
            return self.samples(name, seed)
        if not Path(name).exists() and not is_remote(name):
            raise RequestError(
                f"{where}: {key} names {name!r}, no selection of this file and no folder{nearest(name, self._known)}"
            )
        return name


def _typed(tables: Mapping[str, Any], key: str, kind: type, path: Path, default: Any) -> Any:
    value = tables.get(key, default)
    if not isinstance(value, kind):
        raise RequestError(f"{path}: {key} is not {_TYPES[kind]}")
    return value


def needs(stage: StageConfig, others: Iterable[StageConfig]) -> bool:
    """Return whether a stage reads the output of one of the others: a selection, a run as a model, or its weights."""
    others = [*others]
    return any(is_made(text, others) for text in stage_of(stage).reads(stage))


def is_made(text: str, stages: Iterable[StageConfig]) -> bool:
    """Return whether a path, or the path after an @, is or is in the output folder of one of the stages."""
    paths = (text, text.rpartition("@")[2])
    return any(f"{path}/".startswith(f"{stage.out}/") for stage in stages for path in paths)
