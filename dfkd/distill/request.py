"""Checks of a distillation request before anything is opened."""

from dfkd.config import DistillConfig
from dfkd.data.labels import ClassNames
from dfkd.distill import compress, grafting, specialists, supply
from dfkd.distill.objective import Objective, build_objective
from dfkd.models.find import check_name
from dfkd.models.own import GivenModel
from dfkd.models.several import names_several
from dfkd.system.components import Component
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.training.selections import ORDER


def check_request(config: DistillConfig, student: GivenModel, peers: int) -> tuple[Component | None, Objective | None]:
    """Raise RequestError for what can be refused before any work; `peers` is the number of other students.

    Returns: the generator of `--source` and the named losses, each None if there is none.
    """
    _check_options(config)
    if isinstance(student, str):
        check_name(student)
    ORDER.choose(config.batches)
    compress.check(config)
    specialists.check(config)
    grafting.check(config.graft, peers)
    objective = build_objective(config.loss) if config.loss else None
    if objective is not None:
        _check_objective(config, objective, peers)
    return supply.check(config), objective


def _check_options(config: DistillConfig) -> None:
    if config.classes is not None:
        ClassNames(config.classes)
        if config.test is None:
            say(f"note: --classes {config.classes} changes nothing without --test")
    if config.bits is not None and config.test is None:
        say(f"note: --bits {config.bits} changes nothing without --test: a selection knows its own")
    views = f"--teacher-views {config.teacher_views}"
    if config.teacher_views and config.source is not None:
        raise RequestError(f"{views} records outputs for stored images, and --source makes new ones; leave one out")
    if config.teacher_views and (config.mixup or config.cutmix or config.color_jitter or (config.crop_area or 1) < 1):
        raise RequestError(
            f"{views} can only shift and flip images; leave out --mixup, --cutmix, --color-jitter and --crop-area"
        )
    if config.teacher_views and config.shard_teacher:
        raise RequestError(f"{views} needs the whole teacher in each process; leave out --shard-teacher")
    if config.epochs is not None and config.steps is not None:
        raise RequestError(f"--epochs {config.epochs} and --steps {config.steps} both set the length; give one of them")
    if config.student.endswith(".pt2"):
        raise RequestError(
            f"--student {config.student!r} is a program, which cannot be trained; name the architecture instead"
        )
    if names_several(config.student):
        raise RequestError(f"--student {config.student!r} names several networks, and one is trained; name one")


def _check_objective(config: DistillConfig, objective: Objective, peers: int) -> None:
    """Raise RequestError for options that do not go with the losses, or losses that need more than recorded answers."""
    if objective.reads_peers and not peers:
        raise RequestError(
            f"--loss {objective.reads_peers[0]} learns from other students, and there is none; name one with "
            "--also '--student-seed 1 --out run-2'"
        )
    if config.class_dropping and not objective.reads_kept:
        raise RequestError(f"--class-dropping {config.class_dropping:g} changes nothing: no loss uses it; kd does")
    if config.teacher_views and objective.beyond_logits:
        readers = ", ".join(objective.beyond_logits)
        raise RequestError(
            f"--teacher-views {config.teacher_views} records the teacher's logits, and {readers} needs more; "
            "give losses on outputs (--loss kd relation:1), or leave out --teacher-views"
        )
