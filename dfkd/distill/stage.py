"""`dfkd distill`: from teacher, student and selections to the folder of a run."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dfkd.config import DistillConfig
from dfkd.config.option import is_off, named
from dfkd.data.locate import GivenData
from dfkd.distill.cohort import Cohort, Records
from dfkd.distill.members import learning_together, members
from dfkd.distill.prepare import Distillation, prepare
from dfkd.distill.request import check_request
from dfkd.distill.result import exit_accuracies, figures_of, result_of
from dfkd.formats.kept_weights import WeightKeeper
from dfkd.formats.run_folder import Run
from dfkd.formats.run_records import Result, finished_weights, read_distillation
from dfkd.models.classifier import examine_pixels
from dfkd.models.health import CHECKED_IMAGES
from dfkd.models.load_weights import load_weights
from dfkd.models.own import GivenModel
from dfkd.models.several import given_teacher
from dfkd.models.sharded import is_sharded
from dfkd.models.state import state_to_write
from dfkd.system import ranks
from dfkd.system.console import say
from dfkd.system.files import cached_folder, output_path
from dfkd.system.locks import once
from dfkd.system.memory import forget_peak_memory
from dfkd.system.portable import portable
from dfkd.system.random_state import Turn
from dfkd.training.evaluate import check_files
from dfkd.training.log import Log, check_loggers, logged
from dfkd.training.loop import train


def run(config: DistillConfig) -> None:
    """Distill according to `config`, and resume an interrupted run of the same request."""
    teacher = given_teacher(config.teacher, config.mixing)
    if config.also:
        configs = members(config)
        distill_together(configs, teacher, [member.student for member in configs], config.test)
    else:
        distill(config, teacher, config.student, config.test)


def distill(
    config: DistillConfig, teacher: GivenModel, student: GivenModel, test: GivenData | None
) -> tuple[Path, dict[str, Any]]:
    """Distill one student from networks and labeled data that may already be loaded.

    Without `--out` the folder is in the cache.

    Returns: the folder and the result.
    """
    prepared = _placed(prepare(config, teacher, student, test))
    folder = _folder(prepared)
    result = once(lambda: folder.result(Result) is not None, folder.writing, lambda: _train(prepared, folder))
    if result is None:
        return folder.folder, ranks.from_first(lambda: _complete(prepared, folder))
    _report(prepared.config, result)
    return folder.folder, result


def distill_together(
    configs: Sequence[DistillConfig], teacher: GivenModel, students: Sequence[GivenModel], test: GivenData | None
) -> list[Path]:
    """Distill several students that share images, views and the teacher's answers; each has a run of its own.

    Returns: the folders.
    """
    several, turns = [], []
    for number, (config, student) in enumerate(zip(configs, students, strict=True), 1):
        say(f"student {number} of {len(configs)}: {config.student}")
        several.append(prepare(config, teacher, student, test, len(configs) - 1))
        turns.append(Turn(several[-1].trainer.place.device))
    several = [_placed(prepared) for prepared in learning_together(several)]
    folders = [_folder(prepared) for prepared in several]

    def unfinished() -> list[int]:
        return [n for n, folder in enumerate(folders) if folder.result(Result) is None]

    @contextmanager
    def writing() -> Iterator[None]:
        with ExitStack() as stack:
            for folder in sorted(folders, key=lambda folder: folder.folder):
                stack.enter_context(folder.writing())
            yield

    def make() -> dict[int, dict[str, Any]]:
        return _train_together(several, turns, folders, ranks.from_first(unfinished))

    made = once(lambda: not unfinished(), writing, make) or {}
    for number, (prepared, folder) in enumerate(zip(several, folders, strict=True)):
        if number in made:
            _report(prepared.config, made[number])
        else:
            ranks.from_first(partial(_complete, prepared, folder))
    return [folder.folder for folder in folders]


def _placed(prepared: Distillation) -> Distillation:
    """Return the distillation with an output folder; in the cache, if none is given."""
    out = prepared.config.out or str(cached_folder("runs", prepared.content))
    return replace(prepared, config=replace(prepared.config, out=out))


def _folder(prepared: Distillation) -> Run:
    out = prepared.config.out
    return Run(output_path(out), out, _request(prepared))


def check(config: DistillConfig) -> None:
    """Raise RequestError for what can be refused before any work."""
    check_loggers(config.log)
    for member in members(config):
        check_request(member, member.student, len(config.also))


def _train(prepared: Distillation, folder: Run) -> dict[str, Any]:
    """Train the student, and write it and the result. The caller holds the folder's lock."""
    _examine(prepared)
    trainer, processes = prepared.trainer, ranks.count()
    _keep_weights(prepared, folder)
    with _logged(prepared, folder) as log:
        train(trainer, folder)
        trainer.finish()
        figures = _measured(prepared)
        return ranks.from_first(lambda: _finish(prepared, folder, figures, processes, log))


def _train_together(
    several: Sequence[Distillation], turns: Sequence[Turn], folders: Sequence[Run], unfinished: Sequence[int]
) -> dict[int, dict[str, Any]]:
    """Train the unfinished students, and those that they learn from. The caller holds the locks of all folders.

    Returns: the results by the students' numbers.
    """
    mutual = any(prepared.mutual for prepared in several)
    learning = [n for n in range(len(several)) if mutual or n in unfinished]
    processes, results = ranks.count(), {}
    _examine(several[0])
    for n in unfinished:
        _keep_weights(several[n], folders[n])
    cohort = Cohort([several[n].trainer for n in learning], [turns[n] for n in learning], several[0].config.graft)
    with ExitStack() as stack:
        logs = {n: stack.enter_context(_logged(several[n], folders[n])) for n in unfinished}
        train(cohort, Records([folders[n] for n in learning], mutual))
        cohort.finish([learning.index(n) for n in unfinished])
        for n in unfinished:
            figures = _measured(several[n])
            finish = partial(_finish, several[n], folders[n], figures, processes, logs[n], len(several))
            results[n] = ranks.from_first(finish)
    return results


def _keep_weights(prepared: Distillation, folder: Run) -> None:
    """Install a writer of the student's weights at some steps, if `--keep-weights` requests it."""
    if count := prepared.config.keep_weights:
        prepared.trainer.keeper = WeightKeeper(folder.folder, prepared.trainer.plan.steps, count)


def _examine(prepared: Distillation) -> None:
    """Check before the first step that test files can be read, and on some images the teacher's outputs.

    Raises: RequestError for a damaged test file. Otherwise it would be found only after the training.
    """
    if prepared.test is not None:
        ranks.from_first(partial(check_files, prepared.test))
    forget_peak_memory(prepared.trainer.place.device)
    if prepared.selections:
        first = prepared.selections[0]
        pixels = torch.from_numpy(first.pixels(np.arange(min(CHECKED_IMAGES, len(first)))))
        examine_pixels(prepared.trainer.teacher, pixels)


def _logged(prepared: Distillation, folder: Run) -> AbstractContextManager[Log]:
    """Open the loggers of a run."""
    config, trainer = prepared.config, prepared.trainer
    pace, options = (trainer.plan.steps, config.log_every), portable(asdict(config))
    return logged(config.log, folder, folder.folder, options, pace, trainer.pictures)


def _finish(
    prepared: Distillation, folder: Run, figures: dict[str, Any], processes: int, log: Log, together: int = 1
) -> dict[str, Any]:
    """Write the student and the result with its `figures`; `together` is the number of students of the command."""
    result = figures | result_of(prepared) | ({"processes": processes} if processes > 1 else {})
    result |= {"together": together} if together > 1 else {}
    folder.finish(state_to_write(prepared.student.module), result)
    log.result(result)
    return result


def _request(prepared: Distillation) -> dict[str, Any]:
    """Return the tables of config.toml: the request, the student (so that the run is a MODEL), and the content."""
    config, student = prepared.config, prepared.student
    unused = named(DistillConfig, lambda option: option.role == "none")
    given = {k: v for k, v in asdict(config).items() if k not in unused or not is_off(DistillConfig, k, v)}
    options = portable(given)
    model = {
        "architecture": student.architecture,
        "normalize": student.normalize,
        "image_size": student.image_size,
        **student.frame.describe(),
        **({"class_names": list(student.class_names)} if student.class_names else {}),
        "classes": student.classes,
        "channels": student.channels,
    }
    return {"distill": options, "model": model, "content": prepared.content}


def _complete(prepared: Distillation, folder: Run) -> dict[str, Any]:
    """Return the result of a complete run, under this request's name and measured on this request's test data."""
    result, config, changed = folder.result(Result), prepared.config, {}
    assert result is not None
    tested = read_distillation(folder.folder).distill.test
    folder.tidy()
    if config.name not in (None, result.name):
        changed["name"] = config.name
    known = (portable(config.test), result.test_fingerprint)
    if prepared.test is not None and (result.top1 is None or known != (tested, prepared.test_fingerprint)):
        load_weights(prepared.student.module, finished_weights(folder.folder))
        changed |= figures_of(prepared)
    elif prepared.test is None and tested is not None:
        folder.request["distill"]["test"] = tested  # the result keeps the figures, and they are of this data
    table = {**result.table, **changed}
    if "top1" in changed:
        table.pop("exits", None)  # they were measured on other images, and the heads no longer exist
    if changed:
        with folder.writing():
            folder.update(table)
    _report(config, table)
    say(f"{config.out}: the run was complete already (dfkd evaluate measures it on other data)")
    return table


def _measured(prepared: Distillation) -> dict[str, Any]:
    """Return the figures that rank 0 measures; with a teacher in parts, all ranks measure."""
    measured = partial(_all_figures, prepared)
    return measured() if is_sharded(prepared.teacher.module) else ranks.from_first(measured)


def _all_figures(prepared: Distillation) -> dict[str, Any]:
    """Return the figures of a student that has just been trained, with those of the losses' heads."""
    exits = exit_accuracies(prepared)
    return figures_of(prepared) | ({"exits": exits} if exits else {})


def _report(config: DistillConfig, result: Mapping[str, Any]) -> None:
    if result["top1"] is not None:
        say(
            f"student {result['top1']:.2%}, teacher {result['teacher_top1']:.2%} on {result['test_images']:,} images; "
            f"they agree on {result['agreement']:.2%}"
        )
    steps, seconds = result["steps"], result["seconds"]
    say(f"{config.out}: {steps:,} steps in {seconds:.0f} s; the folder is a MODEL for dfkd evaluate")
