"""`dfkd run FILE.toml`: selections, distillations from them, and their comparison, for several seeds.

Selections go to OUT/samples/NAME-seedN, runs to OUT/runs/NAME-seedN, and the comparison to OUT/report.html. Each stage
skips complete work and resumes interrupted work by itself. So several machines can run one file at once. Each takes the
next stage that no other command runs. If a stage fails, the stages that do not need it still run. The report names it.
"""

import time
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path

from dfkd.app.failures import Failure, raise_all, without
from dfkd.app.pipeline_file import Pipeline, StageConfig, is_made, needs, read_pipeline
from dfkd.app.pipeline_ray import run_on_ray
from dfkd.config import CompareConfig, DistillConfig, RunConfig, SelectConfig
from dfkd.config.option import named
from dfkd.config.stage_table import STAGES, stage_of
from dfkd.config.tables import from_mapping
from dfkd.system.console import console, printing, say
from dfkd.system.errors import RequestError
from dfkd.system.files import PARTIAL
from dfkd.system.locks import Busy, locked
from dfkd.system.ray_session import check_installed

POLL = 1.0
"""Seconds between two checks of the stages that other commands run."""


def run(config: RunConfig, brief: bool = False) -> Path:
    """Run a pipeline's stages, compare the runs, and return the report.

    With `brief`, and on a terminal, a stage prints one line at its end, and its warnings.
    """
    pipeline = read_pipeline(Path(config.file), config.out)
    if config.engine == "ray":
        check_installed()
    part = pipeline.part(config.only) if config.only else pipeline
    stages = [*part.selections, *part.distillations]
    _check_stages(stages, config.file)
    if config.engine == "ray":
        failures = run_on_ray(stages, config.cpus_per_stage, config.gpus_per_stage)
    else:
        failures = _run_stages(stages, brief or console().is_terminal)
    with locked(pipeline.out, f"out = {pipeline.out}", wait=True):
        for half_written in pipeline.out.glob(f"report.*{PARTIAL}"):
            half_written.unlink()
        report = _report(pipeline, {d.out for d in part.distillations}, failures)
    if failures:
        raise_all(failures, len(stages))
    return report


def _check_stages(stages: Sequence[StageConfig], file: str) -> None:
    """Check every stage before the first one runs. Raises: RequestError that names the stage."""
    for stage in stages:
        try:
            stage_of(stage).check(stage)
            _check_files(stage, stages)
        except RequestError as error:
            raise RequestError(f"{file}, {Path(stage.out).name}: {error}") from None


def _check_files(stage: StageConfig, stages: Sequence[StageConfig]) -> None:
    """Check the files of a stage that no other stage makes. Raises: RequestError if one is missing or too small."""
    from dfkd.data.locate import check_there, count_quickly
    from dfkd.models import several
    from dfkd.select.request import check_count

    for data in stage_of(stage).reads(stage, "data"):
        if not is_made(data, stages):
            check_there(data)
    for model in stage_of(stage).reads(stage, "model"):
        if not is_made(model, stages):
            several.check_there(model)
    if isinstance(stage, SelectConfig) and not any(is_made(data, stages) for data in stage.pool):
        counts = [count_quickly(data) for data in stage.pool]
        if None not in counts:
            check_count(stage, sum(filter(None, counts)))


def _run_stages(stages: Sequence[StageConfig], brief: bool) -> list[Failure]:
    """Run every stage, in order. A stage that another command runs, and stages that need it, wait for its end.

    Returns: the failed stages, and the stages that need one of them.
    """
    left, waiting = dict(enumerate(stages, 1)), False
    failures: list[Failure] = []
    while left:
        ready = (n for n, stage in left.items() if not (needs(stage, left.values()) or stage_of(stage).is_held(stage)))
        number = next(ready, None)
        if number is None:
            if not waiting:
                say(f"{len(left)} of {len(stages)} stages are left, and other commands run them: waiting")
            waiting = True
            time.sleep(POLL)
            continue
        waiting = False
        try:
            stage = left[number]
            _run_stage(stage, f"[{number}/{len(stages)}] {stage_of(stage).name} {Path(stage.out).name}", brief)
        except Busy:
            say(f"{Path(stage.out).name}: another command runs it")
            time.sleep(POLL)
            continue
        except OSError:  # a full disk or a missing folder concerns all stages
            raise
        except Exception as error:
            failures.append(Failure.of(left[number], error))
            failures += without(left, failures[-1])
        left.pop(number, None)
    return failures


def _run_stage(stage: StageConfig, title: str, brief: bool) -> None:
    """Run one stage below its title. With `brief`, print the title, the accuracy and the seconds afterwards."""
    if not brief:
        say(title)
    began = time.monotonic()
    with printing(quiet=True, still=("bars", "warnings")) if brief else nullcontext():
        stage_of(stage).run(stage)
    if brief:
        say(f"{title}: {_accuracy(stage)}{time.monotonic() - began:.0f} s")


def _accuracy(stage: StageConfig) -> str:
    """Return the accuracy of a finished distillation as the beginning of a list. Empty for other stages."""
    from dfkd.formats.run_records import Result, read_result

    top1 = read_result(Path(stage.out), Result).top1 if isinstance(stage, DistillConfig) and stage.out else None
    return "" if top1 is None else f"top-1 {top1:.2%}, "


def _report(pipeline: Pipeline, done: Collection[str], failures: Sequence[Failure]) -> Path:
    """Compare the runs that are `done` with other complete runs of the file, and name the failed ones."""
    from dfkd.formats.run_records import RESULT, read_failure
    from dfkd.report import compare

    report = pipeline.out / "report.html"
    failed = {failure.stage.out: failure.why for failure in failures}
    complete = [d for d in pipeline.distillations if (Path(d.out) / RESULT).exists()]
    runs = tuple(d.out for d in complete if (d.out in done and d.out not in failed) or _is_as_requested(d))
    failed |= {d.out: why for d in pipeline.distillations if (why := read_failure(Path(d.out))) is not None}
    if runs:
        config = CompareConfig(runs=runs, out=str(report))
        reasons = {Path(out).name: why for out, why in failed.items()}
        STAGES["compare"].within(config, compare.run, config, reasons)
    return report


def _is_as_requested(distillation: DistillConfig) -> bool:
    """Return whether an earlier command's run has the options that the file has now. If not, print what differs."""
    from dfkd.formats.run_records import read_distillation

    now = asdict(distillation)
    try:
        options = read_distillation(Path(distillation.out)).distill.table
        then = asdict(from_mapping(DistillConfig, options, distillation.out))
    except RequestError:  # written by another version
        then = {}
    decide = named(DistillConfig, lambda option: option.role != "none" and not option.machine)
    left_open = named(DistillConfig, lambda option: option.open)  # the run has the values that were used
    defaults = {field.name: field.default for field in fields(DistillConfig) if field.name in left_open}
    wanted = {name for name in decide if name not in defaults or now[name] != defaults[name]}
    changed = [name for name in now if name in wanted and then.get(name) != now[name]]
    if changed:
        say(f"{distillation.out} is left out: the file has another {', '.join(changed)} now; run that row again")
    return not changed
