"""Defaults of a distillation that depend on the networks and images; `optim` has that of the learning rate."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from dfkd.config import DistillConfig
from dfkd.data.images.frame import Crops
from dfkd.distill.init.classifier import classifier_of
from dfkd.distill.init.inherit import heir, twins
from dfkd.formats.shards import Shards
from dfkd.models.architectures.specialists import Specialists
from dfkd.models.fake_int8 import rounds
from dfkd.models.features.find_taps import find_taps
from dfkd.models.features.taps import in_group
from dfkd.models.load import Model
from dfkd.models.new_classifier import untrained
from dfkd.models.own import GivenModel, OwnNetwork
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.training.bn_reestimate import batch_norms

PHOTO_AREA, FITTED_PHOTO_AREA = 0.35, 0.1
"""Smallest share of a photograph's area that a random crop takes, and that for a student with a fitted classifier."""
SLOW_MOMENTUM, REESTIMATED = 0.05, 20
"""BatchNorm momentum below which statistics are re-estimated at the end, and the number of batches for it."""


def settled(
    config: DistillConfig, teacher: Model, student: Model, given: GivenModel, selections: Sequence[Shards]
) -> tuple[DistillConfig, bool, str | None]:
    """Set the open options of a request: losses, initialization, crops, optimizer, BatchNorm and dropout.

    Returns: the request, whether the student is fine-tuned (it begins trained, or is to keep its statistics), and the
    layer that `--init classifier` fits.
    Raises: RequestError if statistics are to be kept that are not trained.
    """
    if not config.loss:
        config = replace(config, loss=default_losses(config, teacher, student, given))
        say(f"losses: {' '.join(config.loss)}, the default for these networks and images")
    layer = layer_to_fit(config.init, student, given, bool(config.samples))
    if config.init == "auto":
        config = replace(config, init=default_init(teacher, student, given, layer))
        if config.init == "none" and isinstance(given, OwnNetwork) and heir(student, teacher):
            say("note: the student begins with its own weights; --init teacher gives it the teacher's layers")
        elif config.init == "none" and has_weights(student, given) is False and twins(student, teacher):
            say("note: the student has the teacher's shapes and random weights; --init teacher makes it a copy")
    if config.crop_area is None:
        config = replace(config, crop_area=default_area(config, selections))
    kept = config.batchnorm == "kept"
    if kept and config.init != "teacher" and has_weights(student, given) is False:
        raise RequestError(
            f"--batchnorm kept needs a student whose BatchNorm statistics are trained, and {student.spec} has random "
            "weights; leave it out"
        )
    trained = kept or begins_trained(student, given, config.init)
    if config.optimizer == "auto":
        config = replace(config, optimizer="adamw" if trained else "sgd")
        if trained:
            say("optimizer: adamw, the default for a student that is fine-tuned")
    if config.batchnorm == "auto":
        config = replace(config, batchnorm=default_batchnorm(config, student, trained))
    if config.dropout == "auto":
        config = replace(config, dropout="off" if trained else "on")
    if config.reestimate is None:
        config = replace(config, reestimate=0 if config.batchnorm == "kept" else default_reestimate(student))
    return config, trained, layer


def default_losses(config: DistillConfig, teacher: Model, student: Model, given: GivenModel) -> tuple[str, ...]:
    """Return the default losses: `kd`, with `ofd` if both networks have maps of several resolutions.

    docs/results.md has the measurements. A transformer has maps of one resolution only, that of its patches. For
    generated images and recorded answers, the default is `kd` alone. So it is for a student in int8, one with weights
    for photographs, and one that keeps its statistics: the new layers of `ofd` would first undo what such a student
    knows (benchmarks/quality/LOG.md).
    """
    if learns_by := getattr(type(student.module), "learns_by", ()):  # an architecture of dfkd with its own loss
        return tuple(learns_by)
    keeps = config.batchnorm == "kept" or rounds(student.module)
    fine_tuned = keeps or (student.of_photographs and has_weights(student, given))
    if config.teacher_views or config.source is not None or fine_tuned:
        return ("kd",)
    if config.teacher_taps or config.student_taps:  # taps were named: keep `ofd`, so that a wrong name is an error
        return ("kd", "ofd")
    try:
        for model in (teacher, student):
            if len(in_group(find_taps(model.module, example_of(teacher), wanted=("pre",)).taps, "pre")) < 2:
                return ("kd",)
    except RequestError:  # no feature maps, or a network that cannot run, which is reported later
        return ("kd",)
    return ("kd", "ofd")


def default_init(
    teacher: Model, student: Model, given: GivenModel, to_fit: str | None
) -> Literal["none", "teacher", "classifier"]:
    """Return `teacher` if the teacher's layers fill a whole student that has no weights.

    For a student with weights, of which those of the layer `to_fit` are new, return `classifier`. Otherwise return
    `none`. docs/results.md has the measurements.
    """
    layer = None if to_fit is None else student.module.get_submodule(to_fit)
    if isinstance(layer, nn.Linear) and (student.new_layers or untrained(layer)):
        return "classifier"
    bare = isinstance(given, str) and has_weights(student, given) is False
    return "teacher" if bare and heir(student, teacher) else "none"


def layer_to_fit(init: str, student: Model, given: GivenModel, has_images: bool) -> str | None:
    """Return the name of the linear layer that `--init classifier`, or its default, may fit; None if there is none.

    By default the classifier is only fitted if the student has weights, and if there are images to fit it on.
    """
    wanted = init == "classifier" or (init == "auto" and has_images and has_weights(student, given))
    return classifier_of(student.module, student.channels, student.trial_size) if wanted else None


def default_area(config: DistillConfig, selections: Sequence[Shards]) -> float:
    """Return the smallest share of a random crop's area: below 1 for photographs, whose files are cropped.

    Recorded answers, and batches with generated images, use shifted images instead. So does a given `--crop-padding`. A
    student whose classifier is fitted needs many different views. benchmarks/quality/LOG.md has the measurements.
    """
    if config.source is not None or config.teacher_views or config.crop_padding is not None:
        return 1.0
    if not any(shards.encoded for shards in selections):
        return 1.0
    return FITTED_PHOTO_AREA if config.init == "classifier" else PHOTO_AREA


def crops_of_files(config: DistillConfig, selections: Sequence[Shards]) -> Crops | None:
    """Return the random crops of encoded files, or None if crops are off or a generator adds images."""
    area = 1.0 if config.crop_area is None else config.crop_area
    if area == 1 or config.source is not None or not selections or not all(shards.encoded for shards in selections):
        return None
    return Crops(area, config.seed)


def default_reestimate(student: Model) -> int:
    """Return the number of batches on which BatchNorm statistics are re-estimated after the last step.

    Running statistics are means over some 1 / momentum steps. These are 10 steps with torch's default, over 100 in
    torchvision's MobileNetV3 and over 3,000 in its MNASNet. A run may have only 500 steps, so they would mix in
    statistics of old weights. benchmarks/quality/LOG.md has the cost of the re-estimation.
    """
    momenta = [layer.momentum for layer in batch_norms(student.module) if layer.momentum is not None]
    return REESTIMATED if momenta and min(momenta) < SLOW_MOMENTUM else 0


def default_batchnorm(config: DistillConfig, student: Model, trained: bool) -> Literal["batch", "kept"]:
    """Return the statistics by which BatchNorm normalizes in training.

    A student that is fine-tuned with AdamW keeps its own: by those of the batches, it would not begin as it was
    trained. Larger steps, such as those of SGD, need the batches' statistics. benchmarks/quality/LOG.md has the
    measurements. Statistics that are to be re-estimated are not kept.
    """
    fine = trained and config.optimizer == "adamw" and not config.reestimate
    return "kept" if fine and batch_norms(student.module) else "batch"


def begins_trained(student: Model, given: GivenModel, init: str) -> bool:
    """Return whether the student is fine-tuned: it has weights of its own, for images of more than 64 pixels.

    Up to 64 pixels all of a network has to change, and the learning rates of docs/results.md hold. A student in int8
    is always fine-tuned: its BatchNorms are folded away, and without them such rates destroy it. Specialists are
    fine-tuned, too, because they should change only slightly.
    """
    if rounds(student.module) or isinstance(student.module, Specialists):
        return True
    if init == "teacher" or not student.of_photographs:
        return False
    return bool(has_weights(student, given))


def has_weights(student: Model, given: GivenModel) -> bool | None:
    """Return whether the student starts with more than random weights; None if this cannot be determined.

    For a given module, and for code that may load weights by itself, normalization layers decide. Before a training all
    weights of a normalization layer are equal.
    """
    if isinstance(given, str) and student.has_weights is not None:
        return student.has_weights
    norms = nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm
    weights = [layer.weight for layer in student.module.modules() if isinstance(layer, norms)]
    known = [weight for weight in weights if weight is not None]
    return any(len(weight.unique()) > 1 for weight in known) if known else None


def example_of(teacher: Model) -> torch.Tensor:
    """Return an image of zeros [1, channels, height, width] in the teacher's size, to find taps by a forward pass."""
    return torch.zeros(1, teacher.channels, *[teacher.image_size or 1] * 2)
