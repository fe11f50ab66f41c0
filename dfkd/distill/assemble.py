"""Construction of a trainer from a resolved request."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from dfkd.distill import supply
from dfkd.distill.defaults import example_of
from dfkd.distill.fitting import Fitting
from dfkd.distill.init.classifier import ClassifierFit
from dfkd.distill.init.fit import Fit
from dfkd.distill.init.reconstruct import LayersFit
from dfkd.distill.objective import Objective
from dfkd.distill.resolve import Resolved
from dfkd.distill.setting import Counted, Setting
from dfkd.distill.teacher_cache.views import recorded
from dfkd.distill.trainer import Trainer
from dfkd.models.architectures.estimator import Estimator
from dfkd.models.classifier import Classifier, answer
from dfkd.models.ensemble import leader
from dfkd.models.features.find_taps import GROUPS, find_taps, group_of, match_groups
from dfkd.models.features.spread import spread
from dfkd.models.features.taps import Tap, Tapped, network_code, parse_taps
from dfkd.models.load import Model
from dfkd.models.sharded import shard_teacher, undivided
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.training.optim import make_optimizer
from dfkd.training.selections import real_images


def assemble(resolved: Resolved, peers: int) -> Trainer:
    """Build the trainer: source, taps on both networks, losses from a first batch, and one optimizer over all.

    `peers` is the number of other students that the student learns with. The networks are moved, and the teacher may be
    divided among the processes.
    """
    config, teacher, student, place = resolved.config, resolved.teacher, resolved.student, resolved.place
    selections, objective, plan = resolved.selections, resolved.objective, resolved.plan
    if config.shard_teacher:
        shard_teacher(teacher, place)
    source = supply.build_source(config, selections, resolved.generator, teacher, place, resolved.crops)
    fit = _fit(resolved)
    example = example_of(teacher)
    taps = match_groups(
        _taps(teacher, config.teacher_taps, objective.taps, example, "teacher", source.taps),
        _taps(student, config.student_taps, objective.taps, example, "student"),
    )
    taps[1].update(_modules(student, objective))
    classifier = Classifier(teacher, place, taps[0], fold=True)
    with network_code(student.module):
        module = student.module.to(place.device).to(memory_format=torch.channels_last)
    tapped = Tapped(module, taps[1])
    counted = Counted(spread(classifier.answer))
    setting = Setting(
        student=spread(partial(answer, tapped, place)),
        teacher=counted,
        student_head=_head(module, taps[1], example) if objective.binds else None,
        teacher_head=undivided(_head(teacher.module, taps[0], example)) if objective.binds else None,
        images=source.images,
    )
    has_rows = source.images is not None and not (plan.mixup or plan.cutmix)  # a mixed view shows two images
    # in the layout of the training's views: a network that refuses it moves its weights, which `Average` must not miss
    view = torch.zeros_like(example.expand(2, -1, -1, -1), memory_format=torch.channels_last, device=place.device)
    with torch.no_grad(), counted.uncounted():  # in evaluation mode, so that no statistics change
        _set_up(objective, setting, view, has_rows, peers)
    optimizer = make_optimizer([module, objective], config.optimizer, config.weight_decay)
    record = None
    if config.teacher_views:
        record = partial(recorded, classifier, selections, config.teacher_views, plan.crop_padding, plan.flip)
    kind = Fitting if isinstance(module, Estimator) else Trainer
    return kind(
        classifier,
        tapped,
        source,
        objective,
        optimizer,
        plan,
        counted=counted,
        fit=fit,
        record=record,
        cropped=resolved.crops is not None,
    )


def _fit(resolved: Resolved) -> Fit | None:
    """Return the fit of the student's layers before the first step, or None if nothing is to be fitted.

    Raises: RequestError if the student's classifier is to be fitted, and there is no such layer or no image.
    """
    config, teacher, student, copied = resolved.config, resolved.teacher, resolved.student, resolved.copied
    if config.init != "classifier" and copied is None:
        return None
    images = real_images(resolved.selections, config.seed, resolved.crops)
    if copied is not None:
        return LayersFit(images, teacher.image_size or 1, copied) if images is not None else None
    if images is None:
        raise RequestError("--init classifier fits the student's last layer on --samples; name a selection")
    if resolved.layer is None:
        raise RequestError(
            f"--init classifier needs a student whose logits a linear layer computes; {student.spec} has none"
        )
    return ClassifierFit(images, resolved.layer)


def _set_up(objective: Objective, setting: Setting, view: torch.Tensor, has_rows: bool, peers: int) -> None:
    """Let the losses build their parameters from the outputs for a first view of two images, and try them."""
    ours = setting.student(view)
    theirs = replace(setting.teacher(view), peers=(ours.logits,) * peers)
    objective.setup(ours, theirs, setting)
    rows = torch.zeros(2, dtype=torch.int64, device=view.device) if has_rows else None
    objective.to(view.device).check(ours, replace(theirs, view=view, rows=rows))


def _modules(student: Model, objective: Objective) -> dict[str, Tap]:
    """Return taps on the student's modules that losses of one architecture read.

    Raises: RequestError for a student that lacks such a module.
    """
    for path, loss in objective.student_modules.items():
        if path not in dict(student.module.named_modules()):
            raise RequestError(f"--loss {loss} is for another student: {student.spec} has no module {path!r}")
    return {path: Tap(path) for path in objective.student_modules}


def _head(module: nn.Module, taps: Mapping[str, Tap], example: torch.Tensor) -> nn.Linear | None:
    """Return the linear layer that computes the logits from the feature `last`, or None if there is none.

    An ensemble has none.
    """
    if leader(module)[1] is not module:
        return None
    try:
        tap = find_taps(module, example.to(next(module.parameters()).device), wanted=("last",)).taps["last"]
    except RequestError:
        return None
    layer = module.get_submodule(tap.path)
    return layer if isinstance(layer, nn.Linear) and taps.get("last", tap) == tap else None


def _taps(
    model: Model,
    by_hand: Sequence[str],
    wanted: frozenset[str],
    example: torch.Tensor,
    who: str,
    others: frozenset[str] = frozenset(),
) -> dict[str, Tap]:
    """Return the taps that the losses read: those named by hand, and the others found by tracing the model.

    `others` are taps that may also be named, because a generator reads them.
    """
    given = parse_taps(by_hand)
    for name in [*given]:
        if group_of(name) in others - wanted:
            del given[name]
        elif group_of(name) not in wanted or name in GROUPS:
            numbered = [f"{tap}1, {tap}2, ..." if tap in GROUPS else tap for tap in sorted(wanted)]
            read = f"the losses read {', '.join(numbered)}" if wanted else "no loss reads features"
            raise RequestError(f"--{who}-taps names {name!r}; {read}")
    found = find_taps(model.module, example, given, wanted)
    for note in found.notes:
        say(f"note: {who} {model.spec}: {note}")
    return found.taps
