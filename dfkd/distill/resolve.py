"""From a distillation request to what a training is made of: options without defaults, images, networks and losses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from dfkd.config import DistillConfig
from dfkd.data.images.frame import Crops
from dfkd.data.images.nvjpeg import gpu_decoder
from dfkd.data.labels import ClassNames
from dfkd.distill import compress, fitting, specialists, supply
from dfkd.distill.defaults import crops_of_files, settled
from dfkd.distill.init.channels import Channels
from dfkd.distill.init.inherit import inherit, twins
from dfkd.distill.init.reconstruct import Copied
from dfkd.distill.lessons import Plan
from dfkd.distill.objective import Objective, build_objective
from dfkd.distill.request import check_request
from dfkd.formats.shards import Shards
from dfkd.models.load import Model, load_model
from dfkd.models.own import GivenModel
from dfkd.models.prune import Pruned
from dfkd.system import names, ranks
from dfkd.system.components import Component
from dfkd.system.console import say
from dfkd.system.device import Place, resolve_place
from dfkd.system.errors import RequestError
from dfkd.system.shares import check_batch
from dfkd.training.bn_reestimate import batch_norms
from dfkd.training.optim import SCHEDULE_WARMUP, default_rate
from dfkd.training.selections import open_selections, open_teacher

DEFAULT_STEPS = 4000


@dataclass(frozen=True)
class Resolved:
    """A request, opened and checked. The student has the weights with which it begins."""

    config: DistillConfig
    """The options, with defaults that suit the networks and images."""
    place: Place
    selections: Sequence[Shards]
    generator: Component | None
    teacher: Model
    student: Model
    copied: Copied | None
    """What the student's layers are to be fitted to, if they are parts of a larger network's layers."""
    layer: str | None
    """Name of the linear layer that `--init classifier` fits."""
    objective: Objective
    crops: Crops | None
    """Random crops of encoded files. With None, the steps crop pixels."""
    plan: Plan


def resolve(config: DistillConfig, teacher_given: GivenModel, student_given: GivenModel, peers: int) -> Resolved:
    """Open and check what a request names; `peers` is the number of other students that learn in the same command.

    Raises: RequestError for everything that can be refused before the first step.
    """
    torch.manual_seed(_own_seed(config))  # a loss from outside dfkd may draw its parameters in its constructor
    # check before opening anything, so that errors appear at once
    generator, objective = check_request(config, student_given, peers)
    if not config.class_dropping and any("dropped" in names.parse(loss).options for loss in config.loss):
        say("note: a loss's dropped=... changes nothing without --class-dropping, such as 0.05")
    check_batch(config.batch_size)
    place = resolve_place(config.device, config.precision)
    selections = _selections(config, place)
    teacher = open_teacher(teacher_given, config.samples, selections, config)
    student, pruned = _student(config, student_given, teacher, selections, place)
    config = fitting.configured(config, student)
    config, trained, layer = settled(config, teacher, student, student_given, selections)
    objective = objective or build_objective(config.loss)
    student, copied = _initialized(config, teacher, student, pruned, place)
    crops = crops_of_files(config, selections)
    plan = _plan(config, selections, student, trained, crops)
    _check_plan(config, plan, student, objective)
    return Resolved(config, place, selections, generator, teacher, student, copied, layer, objective, crops, plan)


def _selections(config: DistillConfig, place: Place) -> list[Shards]:
    """Open the selections, whose JPEG files a GPU decodes if the options say so."""
    selections = open_selections(config.samples, config.normalize, config.image_size)
    decoder = gpu_decoder(config.decoder, place.device, any(shards.encoded for shards in selections))
    return [shards.decoded_by(decoder) for shards in selections] if decoder else selections


def _student(
    config: DistillConfig, given: GivenModel, teacher: Model, selections: Sequence[Shards], place: Place
) -> tuple[Model, Pruned | None]:
    """Load the student and change its architecture as the options say. Returns it, and how it was pruned."""
    class_names = teacher.class_names if config.classes is None else ClassNames(config.classes).names
    torch.manual_seed(_own_seed(config))  # the student's initial weights
    student = load_model(given, teacher.input, classes=teacher.classes, channels=teacher.channels, new_classifier=True)
    student = replace(student, class_names=class_names if len(class_names) == student.classes else ())
    student, pruned = compress.compressed(config, student)
    return specialists.with_specialists(config, student, selections, place), pruned


def _own_seed(config: DistillConfig) -> int:
    """Return the seed of the student's and the losses' random numbers; images and views have another generator."""
    return config.seed if config.student_seed is None else config.student_seed


def _initialized(
    config: DistillConfig, teacher: Model, student: Model, pruned: Pruned | None, place: Place
) -> tuple[Model, Copied | None]:
    """Return the student with the weights with which it begins, and what its layers are to be fitted to."""
    copied = _copied(config, teacher, student, pruned)
    return _synchronized(student, place) if config.sync_batchnorm else student, copied


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


def _synchronized(student: Model, place: Place) -> Model:
    """Convert the student's BatchNorm layers to statistics over all processes. Raises: RequestError without GPUs."""
    if ranks.count() == 1:
        say("note: --sync-batchnorm changes nothing with one process")
        return student
    if place.device.type != "cuda":
        raise RequestError("--sync-batchnorm needs GPUs, and the device is cpu; leave it out")
    return replace(student, module=torch.nn.SyncBatchNorm.convert_sync_batchnorm(student.module))


def _plan(
    config: DistillConfig, selections: Sequence[Shards], student: Model, trained: bool, crops: Crops | None
) -> Plan:
    padding = 0 if crops is not None else (student.image_size or 0) // 8
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
