"""Preparation of a distillation: everything that the request names is opened, checked and built before any output."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from dfkd.config import DistillConfig
from dfkd.config.option import is_off, named
from dfkd.config.tables import differences
from dfkd.data import Pool
from dfkd.data.images.frame import Crops
from dfkd.data.images.nvjpeg import gpu_decoder
from dfkd.data.labels import ClassNames
from dfkd.data.locate import GivenData
from dfkd.distill import compress, fitting, specialists, supply
from dfkd.distill.assemble import assemble
from dfkd.distill.defaults import crops_of_files, settled
from dfkd.distill.init.channels import Channels
from dfkd.distill.init.classifier import ClassifierFit
from dfkd.distill.init.fit import Fit
from dfkd.distill.init.inherit import inherit, twins
from dfkd.distill.init.reconstruct import Copied, LayersFit
from dfkd.distill.lessons import Plan
from dfkd.distill.objective import Objective, build_objective
from dfkd.distill.request import check_request
from dfkd.distill.trainer import Trainer
from dfkd.formats.run_records import RESULT, Result, read_result, run_folder
from dfkd.formats.shards import Shards
from dfkd.models.load import Model, load_model
from dfkd.models.own import GivenModel
from dfkd.models.prune import Pruned
from dfkd.models.sharded import shard_teacher
from dfkd.system import names, ranks
from dfkd.system.console import say
from dfkd.system.device import Place, resolve_place
from dfkd.system.errors import RequestError
from dfkd.system.files import hash_of
from dfkd.system.portable import portable
from dfkd.system.shares import check_batch
from dfkd.system.versions import versions
from dfkd.training.bn_reestimate import batch_norms
from dfkd.training.evaluate import check_labels, open_images
from dfkd.training.optim import SCHEDULE_WARMUP, default_rate
from dfkd.training.selections import ORDER, open_selections, open_teacher, real_images

DEFAULT_STEPS = 4000
DECIDING = named(DistillConfig, lambda option: option.role == "decides")
"""Options that are part of the run's content as they are.

Other options have no influence on the student, or their resolved values are part of the content."""


@dataclass(frozen=True)
class Distillation:
    """A resolved request, ready to train; nothing is written yet."""

    config: DistillConfig
    selections: Sequence[Shards]
    teacher: Model
    student: Model
    test: Pool | None
    trainer: Trainer
    content: Mapping[str, Any]
    """Everything that decides the student."""

    @property
    def begins(self) -> str:
        """Initial weights of the student: `teacher` for the teacher's layers, `given` for its own, or `random`.

        A class from outside `dfkd` that is named without weights counts as random.
        """
        return "teacher" if self.config.init == "teacher" else "given" if self.student.has_weights else "random"

    @property
    def mutual(self) -> bool:
        """Whether the other students of the command influence this student."""
        return bool(self.trainer.objective.reads_peers) or self.config.graft > 0

    @property
    def test_fingerprint(self) -> str | None:
        """Hash of the labeled data, or None without a test; another file under the same name has another hash."""
        return hash_of(self.test.identity) if self.test is not None else None


def prepare(
    config: DistillConfig,
    teacher_given: GivenModel,
    student_given: GivenModel,
    test_given: GivenData | None,
    peers: int = 0,
) -> Distillation:
    """Open, check and build everything; `peers` is the number of other students that learn in the same command.

    Raises: RequestError for everything that can be refused before the first step.
    """
    torch.manual_seed(_own_seed(config))  # a loss from outside dfkd may draw its parameters in its constructor
    # check before opening anything, so that errors appear at once
    generator, objective = check_request(config, student_given, peers)
    if not config.class_dropping and any("dropped" in names.parse(loss).options for loss in config.loss):
        say("note: a loss's dropped=... changes nothing without --class-dropping, such as 0.05")
    check_batch(config.batch_size)
    place = resolve_place(config.device, config.precision)
    selections = open_selections(config.samples, config.normalize, config.image_size)
    if decoder := gpu_decoder(config.decoder, place.device, any(shards.encoded for shards in selections)):
        selections = [shards.decoded_by(decoder) for shards in selections]
    teacher = open_teacher(teacher_given, config.samples, selections, config)
    student, pruned = compress.compressed(config, _load_student(config, student_given, teacher))
    student = specialists.with_specialists(config, student, selections, place)
    config = fitting.configured(config, student)
    config, trained, layer = settled(config, teacher, student, student_given, selections)
    objective = objective or build_objective(config.loss)
    copied = _copied(config, teacher, student, pruned)
    if config.sync_batchnorm:
        student = _synchronized(student, place)
    crops = crops_of_files(config, selections)
    plan = _plan(config, selections, student, trained, crops is not None)
    _check_plan(config, plan, student, objective)
    content = _content(config, plan, teacher, student, selections, objective, place)
    content["student"] |= _of_run(student_given)
    content |= supply.content(config, generator, teacher)
    ranks.check_same(content, differences)
    # open the test data before the training, so that an error in its name appears at once
    test = _open_test(test_given, config, teacher) if test_given is not None else None
    if config.shard_teacher:
        shard_teacher(teacher, place)
    source = supply.build_source(config, selections, generator, teacher, place, crops)
    fit = _fit(config, teacher, student, selections, crops, copied, layer)
    opened = (config, teacher, student, source, objective, place, plan, selections, fit)
    trainer = assemble(*opened, cropped=crops is not None, peers=peers)
    return Distillation(config, selections, teacher, student, test, trainer, content)


def _check_statistics(plan: Plan, student: Model) -> None:
    """Raise RequestError for options on BatchNorm statistics that change nothing, or contradict each other."""
    kept, again = plan.batchnorm == "kept", f"--reestimate {plan.reestimate}"
    if (kept or plan.reestimate) and not batch_norms(student.module):
        option = "--batchnorm kept" if kept else again
        raise RequestError(f"{option} changes nothing: the student has no BatchNorm statistics")
    if kept and plan.reestimate:
        raise RequestError(
            f"--batchnorm kept keeps the student's BatchNorm statistics, and {again} replaces them; leave one out"
        )


def _check_plan(config: DistillConfig, plan: Plan, student: Model, objective: Objective) -> None:
    """Raise RequestError for numbers that do not go with the student and the losses."""
    if any(isinstance(layer, torch.jit.ScriptModule) for layer in student.module.modules()):
        raise RequestError(f"the student {student.spec} is TorchScript, which cannot learn; give the module it is of")
    fitting.check_size(plan.steps * plan.batch_size, student)
    specialists.check_vote(config, student, objective)
    _check_statistics(plan, student)
    for name, steps in objective.preparation.items():
        if steps >= plan.steps:
            raise RequestError(
                f"--loss {name} changes the student only after {steps} steps, and the run has {plan.steps}; give more "
                "--steps, or a smaller number (ft:paraphraser=N, codistillation:burn_in=N)"
            )
    if config.teacher_views > 1 and not plan.crop_padding and not plan.flip:
        raise RequestError(
            f"--teacher-views {config.teacher_views} are all the same without --crop-padding and --flip; give 1"
        )


def _load_student(config: DistillConfig, given: GivenModel, teacher: Model) -> Model:
    names = teacher.class_names if config.classes is None else ClassNames(config.classes).names
    torch.manual_seed(_own_seed(config))  # the student's initial weights
    student = load_model(
        given,
        normalize=teacher.normalize,
        image_size=teacher.image_size,
        crop_pct=teacher.frame.crop_pct,
        interpolation=teacher.frame.interpolation,
        classes=teacher.classes,
        channels=teacher.channels,
        new_classifier=True,
    )
    return replace(student, class_names=names if len(names) == student.classes else ())


def _own_seed(config: DistillConfig) -> int:
    """Return the seed of the student's and the losses' random numbers; images and views have another generator."""
    return config.seed if config.student_seed is None else config.student_seed


def _copied(config: DistillConfig, teacher: Model, student: Model, pruned: Pruned | None) -> Copied | None:
    """Copy the teacher's layers with `--init teacher`. Returns what the student's layers are to be fitted to."""
    if config.init != "teacher":
        if pruned is None or config.init == "classifier" or config.quantize is not None:  # no int8 layer can be fitted
            return None
        return Copied(Channels(pruned.kept), pruned.whole)
    option = "--init teacher"
    try:
        inherited = inherit(student, teacher)
    except RequestError as error:
        raise RequestError(f"{option}: {error}") from None
    say(f"{option}: {inherited.summary}")
    return None if twins(student, teacher) else Copied(inherited.channels)


def _fit(
    config: DistillConfig,
    teacher: Model,
    student: Model,
    selections: Sequence[Shards],
    crops: Crops | None,
    copied: Copied | None,
    layer: str | None,
) -> Fit | None:
    """Return the fit of the student's layers before the first step, or None if nothing is to be fitted.

    Raises: RequestError if the student's classifier is to be fitted, and there is no such layer or no image.
    """
    if config.init != "classifier" and copied is None:
        return None
    images = real_images(selections, config.seed, crops)
    if copied is not None:
        return LayersFit(images, teacher.image_size or 1, copied) if images is not None else None
    if images is None:
        raise RequestError("--init classifier fits the student's last layer on --samples; name a selection")
    if layer is None:
        raise RequestError(
            f"--init classifier needs a student whose logits a linear layer computes; {student.spec} has none"
        )
    return ClassifierFit(images, layer)


def _synchronized(student: Model, place: Place) -> Model:
    """Convert the student's BatchNorm layers to statistics over all processes. Raises: RequestError without GPUs."""
    if ranks.count() == 1:
        say("note: --sync-batchnorm changes nothing with one process")
        return student
    if place.device.type != "cuda":
        raise RequestError("--sync-batchnorm needs GPUs, and the device is cpu; leave it out")
    return replace(student, module=torch.nn.SyncBatchNorm.convert_sync_batchnorm(student.module))


def _plan(config: DistillConfig, selections: Sequence[Shards], student: Model, trained: bool, cropped: bool) -> Plan:
    padding = 0 if cropped else (student.image_size or 0) // 8
    images = sum(map(len, selections))
    # of a pruned network the remaining weights should change slowly
    init = "teacher" if config.prune is not None and config.init == "none" else config.init
    rate = default_rate(config.optimizer, student.module, init, trained, student.of_photographs)
    steps = config.steps or DEFAULT_STEPS
    if config.epochs is not None:
        steps = math.ceil(config.epochs * images / (config.batch_size * supply.stored_share(config)) - 1e-9)
    return Plan(
        steps=steps,
        batch_size=config.batch_size,
        lr=config.lr if config.lr is not None else rate,
        warmup=SCHEDULE_WARMUP[config.schedule] if config.warmup is None else config.warmup,
        crop_padding=padding if config.crop_padding is None else config.crop_padding,
        crop_area=1.0 if config.crop_area is None else config.crop_area,
        flip=config.flip,
        color_jitter=config.color_jitter,
        mixup=config.mixup,
        cutmix=config.cutmix,
        ema=config.ema,
        batchnorm=config.batchnorm,
        dropout=config.dropout,
        reestimate=config.reestimate or 0,
        class_dropping=config.class_dropping,
        checkpoint_every=config.checkpoint_every,
        log_every=config.log_every,
        seed=config.seed,
    )


def _content(
    config: DistillConfig,
    plan: Plan,
    teacher: Model,
    student: Model,
    selections: Sequence[Shards],
    objective: Objective,
    place: Place,
) -> dict[str, Any]:
    """Return everything that decides the student."""
    options = {k: v for k, v in portable(asdict(config)).items() if k in DECIDING}
    options["batches"] = ORDER.choose(config.batches).identity
    resolved = named(DistillConfig, lambda option: option.role != "decides")  # the plan has other fields, too
    decided = {k: v for k, v in asdict(plan).items() if k not in resolved}
    return {
        "teacher": teacher.fingerprint(),
        "student": student.fingerprint(),
        "normalize": teacher.normalize,
        "selections": [shards.manifest.fingerprint for shards in selections],
        "selected": [_words(shards.manifest.content.options.table) for shards in selections],
        "loss": portable(objective.spelled),
        "options": {k: v for k, v in (options | decided).items() if not is_off(DistillConfig, k, v)},
        "compute": place.describe(),
        "versions": versions("torch", "torchvision"),
    }


def _of_run(student: GivenModel) -> dict[str, str]:
    """Return the name of the run that the student continues; empty for any other student."""
    folder = run_folder(student) if isinstance(student, str) else None
    if folder is None or not (folder / RESULT).is_file():
        return {}
    return {"run": read_result(folder, Result).name}


def _open_test(test: GivenData, config: DistillConfig, teacher: Model) -> Pool:
    data = open_images(test, config, teacher)
    check_labels(data, teacher.classes)
    return data


def _words(options: Mapping[str, Any]) -> str:
    """Return a selection's options as text for comparisons; the selection's fingerprint already includes them."""
    return " ".join(f"{name}={value}" for name, value in options.items() if value is not None)
