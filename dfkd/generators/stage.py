"""`dfkd generate`: train a method on the teacher and write its images to a folder like that of a selection."""

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from dfkd.config import GenerateConfig
from dfkd.config.stages.shared import Input
from dfkd.config.tables import differences
from dfkd.formats.manifest import MANIFEST
from dfkd.formats.run_folder import Progress
from dfkd.formats.run_records import CHECKPOINT, LOGS
from dfkd.formats.shards import Shards
from dfkd.generators.base import Method, method_code
from dfkd.generators.build import build, choose, method_class
from dfkd.generators.maker import Maker
from dfkd.generators.pictures import BLOCK, GeneratedPictures
from dfkd.generators.quota import Quota, missing
from dfkd.models.classifier import Classifier
from dfkd.models.features.spread import spread
from dfkd.models.load import Model, load_trained
from dfkd.models.own import GivenModel
from dfkd.models.several import given_teacher, learns_weights
from dfkd.models.sharded import is_sharded, shard_teacher
from dfkd.select.choose import NON_FINITE, NOT_DRAWN, SELECTED, Choice
from dfkd.select.journal import Journal
from dfkd.select.selected import Selected
from dfkd.select.selection_writer import check_partial, is_done, write
from dfkd.system import ranks
from dfkd.system.components import Component
from dfkd.system.console import progress, say
from dfkd.system.device import Place, resolve_place
from dfkd.system.errors import RequestError
from dfkd.system.files import cached_folder, hash_of, output_path, partial_folder, restore_folder
from dfkd.system.locks import locked, once
from dfkd.system.portable import portable
from dfkd.system.shares import check_batch
from dfkd.system.text import LISTED_CLASSES, inspect_command, of_classes
from dfkd.system.versions import versions
from dfkd.training.log import Log, check_loggers, logged
from dfkd.training.loop import Pace, train
from dfkd.training.selections import open_selections, open_teacher, real_images

DEFAULT_COUNT = 10_000
ATTEMPTS = 20
"""Images made for each one that `--fill` lacks, before the stage gives up."""
MARGIN = 2
"""Images made for each one that `--fill` lacks, by methods that make a fixed number of images."""


@dataclass(frozen=True)
class Generation:
    """A resolved request, ready for training. Nothing is written yet."""

    config: GenerateConfig
    component: Component
    teacher: Model
    student: Model | None
    place: Place
    samples: list[Shards]
    quota: Quota
    content: dict[str, Any]
    """Everything that decides the images."""


def run(config: GenerateConfig) -> Path:
    """Make images for the request and return their folder. A complete folder of the same request is left as it is."""
    return generate(config, given_teacher(config.teacher, config.mixing), config.student)


def generate(config: GenerateConfig, teacher: GivenModel, student: GivenModel | None) -> Path:
    """Make images with a given teacher and student, which may be modules, and return the folder.

    Without `out`, the folder is one of the cache.
    """
    if config.out:
        output_path(config.out)
    prepared = _prepare(config, teacher, student)
    config, out = prepared.config, output_path(prepared.config.out)
    selected = once(
        lambda: is_done(out, config.out, prepared.content),
        lambda: locked(partial_folder(out), f"--out {config.out}"),
        lambda: _make(prepared, out),
    )
    if selected is None:
        say(f"{config.out}: these images are complete already")
    else:
        _report(prepared, selected)
    return out


def check(config: GenerateConfig) -> Component:
    """Raise RequestError for what can be refused before any work. Returns the method."""
    check_loggers(config.log)
    return choose(config.method)


def _make(prepared: Generation, out: Path) -> Selected | None:
    """Train the method, make images and write them, while the partial folder is locked."""
    config, partial = prepared.config, partial_folder(out)
    ranks.from_first(lambda: _begin(prepared, partial))
    torch.manual_seed(config.seed)  # code from outside dfkd may draw torch's global random numbers
    method = _method(prepared)
    with method_code(method):
        enough = method.updates_for(_needed(prepared))
    steps = config.steps or enough
    pace = Pace(steps, config.batch_size, config.checkpoint_every, config.log_every)
    student = None if prepared.student is None else spread(Classifier(prepared.student, prepared.place).answer)
    maker = Maker(method, prepared.component.name, student, pace)
    record, options = Progress(partial, f"; delete {partial}, and it starts anew"), portable(asdict(config))
    with logged(config.log, record, out, options, (steps, config.log_every), maker.pictures) as log:
        train(maker, record)
        if is_sharded(prepared.teacher.module):  # every rank has a part of the teacher, so all ranks have to score
            made = _collect(prepared, maker.method)
            return ranks.on_first(lambda: _write(made, maker, partial, out, log))
        return ranks.on_first(lambda: _write(_collect(prepared, maker.method), maker, partial, out, log))


def _begin(prepared: Generation, partial: Path) -> None:
    """Prepare the partial folder for this request."""
    check_partial(partial)
    Journal(partial, hash_of(prepared.content), anew=lambda: _forget(partial))
    restore_folder(partial / CHECKPOINT)


def _write(selected: Selected, maker: Maker, partial: Path, out: Path, log: Log) -> Selected:
    """Write the selected images of the trained method."""
    log.result({"images": len(selected.choice), **selected.cost, "seconds": round(maker.seconds, 3)})
    write(partial, out, selected)
    return selected


def _forget(partial: Path) -> None:
    """Remove the checkpoint and logs of another request, also a checkpoint that a kill left half replaced."""
    for folder in partial.glob(f"{CHECKPOINT}*"):
        shutil.rmtree(folder)
    shutil.rmtree(partial / LOGS, ignore_errors=True)


def _prepare(config: GenerateConfig, teacher_given: GivenModel, student_given: GivenModel | None) -> Generation:
    """Open and check everything that the request names.

    Raises: RequestError for whatever can be refused before the first step.
    """
    component = check(config)
    name = component.name
    real = method_class(component).needs_real
    if config.samples and not real and not learns_weights(teacher_given):
        raise RequestError(f"--samples changes nothing: {name} learns from the teacher alone")
    if real and not config.samples:
        raise RequestError(f"{name} learns from real images too; --samples names them")
    check_batch(config.batch_size)
    place = resolve_place(config.device, config.precision)
    opened = (*config.samples, *((config.fill,) if config.fill is not None else ()))
    selections = open_selections(opened, config.normalize, config.image_size)
    teacher = open_teacher(teacher_given, opened, selections, config)
    samples = selections[: len(config.samples)]
    held = np.array(selections[-1].manifest.per_class) if config.fill is not None else None
    quota = Quota(config.count or DEFAULT_COUNT) if held is None else _lacking(config, held)
    student = _student(student_given, teacher)
    content = {
        "teacher": teacher.fingerprint(),
        "preprocess": {"normalize": teacher.normalize, "image_size": teacher.image_size, "channels": teacher.channels},
        "options": {
            "method": portable(component.identity),
            "count": config.count,
            "steps": config.steps,
            "batch_size": config.batch_size,
            "class_dropping": config.class_dropping,
            **({"teacher_taps": list(config.teacher_taps)} if config.teacher_taps else {}),
        },
        **({"student": student.fingerprint()} if student is not None else {}),
        **({"samples": [shards.manifest.fingerprint for shards in samples]} if samples else {}),
        **({"fill": selections[-1].manifest.fingerprint} if held is not None else {}),
        "compute": place.describe(),
        "versions": versions("torch", "torchvision", "numpy"),
        "seed": config.seed,
    }
    ranks.check_same(content, differences)
    config = replace(config, out=config.out or str(cached_folder("selections", content)))
    return Generation(config, component, teacher, student, place, samples, quota, content)


def _lacking(config: GenerateConfig, held: Int[np.ndarray, " classes"]) -> Quota:
    """Return the quota that fills the selection of `--fill`."""
    try:
        return Quota.of(missing(held, config.count))
    except RequestError as error:
        raise RequestError(f"--fill {config.fill}: {error}") from None


def _student(given: GivenModel | None, teacher: Model) -> Model | None:
    """Load the fixed student that the method learns against."""
    if given is None:
        return None
    input = Input(teacher.normalize, teacher.image_size)
    return load_trained(given, input, "--student", classes=teacher.classes, channels=teacher.channels)


def _method(prepared: Generation) -> Method:
    config, wanted = prepared.config, prepared.quota.per_class
    if config.teacher_taps and not method_class(prepared.component).taps:
        say(f"note: --teacher-taps changes nothing: {prepared.component.name} reads no features")
    if config.shard_teacher:
        shard_teacher(prepared.teacher, prepared.place)
    method = build(
        prepared.component,
        prepared.teacher,
        prepared.place,
        batch=config.batch_size,
        seed=config.seed,
        taps=config.teacher_taps,
        wanted=None if wanted is None else torch.from_numpy(wanted / wanted.sum()).float(),
        real=real_images(prepared.samples, config.seed),
    )
    name = prepared.component.name
    if method.needs_student and prepared.student is None:
        raise RequestError(
            f"{name} needs a student: --student names one that is trained, or train both: dfkd distill --source {name}"
        )
    if prepared.student is not None and not method.uses_student:
        raise RequestError(f"--student changes nothing: {name} uses none")
    return method


def _needed(prepared: Generation) -> int:
    return prepared.quota.count * (MARGIN if prepared.quota.per_class is not None else 1)


def _collect(prepared: Generation, method: Method) -> Selected:
    """Make images until the quota is filled or the limit is reached, and choose among them."""
    quota, pictures = prepared.quota, GeneratedPictures(method, prepared.component.name)
    teacher = Classifier(prepared.teacher, prepared.place)
    most = quota.count if quota.per_class is None else ATTEMPTS * quota.count
    with method_code(method):
        most = min(most, method.available() or most)
    taken: list[Int[np.ndarray, " block"]] = []
    with progress("making", quota.count, "images") as bar:
        while len(pictures) < most and not quota.full:
            start = len(pictures)
            scores = pictures.score(teacher, min(BLOCK, most - start))
            taken.append(start + quota.take(scores.prediction, np.isfinite(scores.confidence)))
            bar.advance(len(taken[-1]))
    indices = np.concatenate(taken)
    if len(indices) == 0:
        raise RequestError(f"none of {len(pictures):,} images is of a class that is missing; try another --method")
    finite = np.isfinite(pictures.scores.images.confidence)
    reasons = np.where(finite, NOT_DRAWN, NON_FINITE).astype(np.int8)
    reasons[indices] = SELECTED
    choice = Choice(reasons, None, int(finite.sum()))
    return Selected(
        prepared.config,
        prepared.teacher,
        pictures,
        pictures.scores,
        choice,
        prepared.content,
        source=prepared.component.name,
        cost={"teacher_forwards": method.teacher_forwards + len(pictures), "generator_steps": method.updates},
    )


def _report(prepared: Generation, selected: Selected) -> None:
    indices = selected.choice.indices
    say(f"{len(indices):,} images, mean confidence {selected.scores.at(indices).confidence.mean():.3f}")
    say(f"by predicted class: {of_classes(selected.per_class.tolist(), MANIFEST, ',')}")
    lacking, wanted = prepared.quota.lacking(), prepared.quota.count
    if len(indices) < wanted:
        listed = lacking if len(lacking) <= LISTED_CLASSES else f"{len(lacking):,} classes lack some"
        classes = f", by class: {listed}" if lacking else "; more --steps make more, where a method makes batches"
        say(
            f"warning: {wanted - len(indices):,} of {wanted:,} are missing after {len(selected.pool):,} images{classes}"
        )
    out = prepared.config.out
    say(f"{out}: {len(indices):,} images; look at them with: {inspect_command(out)}")
