"""What a distillation takes where no option says it and it depends on the networks; the rate's is in `optim`."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from dfkd.config import DistillConfig
from dfkd.data.images.frame import Crops
from dfkd.distill.init.inherit import heir
from dfkd.formats.shards import Shards
from dfkd.models.architectures.specialists import Specialists
from dfkd.models.fake_int8 import rounds
from dfkd.models.features.find_taps import find_taps
from dfkd.models.features.taps import in_group
from dfkd.models.load import Model
from dfkd.models.own import GivenModel
from dfkd.system.errors import RequestError
from dfkd.training.bn_reestimate import batch_norms

PHOTO_AREA = 0.35
"""The smallest share of a photograph that a random crop takes."""
SLOW_MOMENTUM, REESTIMATED = 0.05, 20
"""Running statistics with less momentum are computed anew at the end, on so many batches."""


def default_losses(config: DistillConfig, teacher: Model, student: Model, given: GivenModel) -> tuple[str, ...]:
    """What docs/results.md supports: `ofd` beside `kd`, but for photographs and a student that is trained already.

    Networks need maps of several resolutions (a transformer has one, of its patches). A generator's images, and answers
    that were kept, are for the outputs.
    """
    if learns_by := getattr(type(student.module), "learns_by", ()):  # an architecture of ours with a loss of its own
        return tuple(learns_by)
    fine_tuned = student.of_photographs and has_weights(student, given)
    if config.teacher_views or config.source is not None or fine_tuned:
        return ("kd",)
    if config.teacher_taps or config.student_taps:  # somebody knows the taps: a mistake in them is to be told
        return ("kd", "ofd")
    try:
        for model in (teacher, student):
            if len(in_group(find_taps(model.module, example_of(teacher), wanted=("pre",)).taps, "pre")) < 2:
                return ("kd",)
    except RequestError:  # no feature maps, or a network that cannot be run, which is told when it is used
        return ("kd",)
    return ("kd", "ofd")


def default_init(teacher: Model, student: Model, given: GivenModel) -> Literal["none", "teacher"]:
    """What docs/results.md supports: the teacher's layers, where they make a whole student that has no weights."""
    bare = isinstance(given, str) and has_weights(student, given) is False
    return "teacher" if bare and heir(student, teacher) else "none"


def default_area(config: DistillConfig, selections: Sequence[Shards]) -> float:
    """The smallest share of a random crop's area: photographs are cropped from their files.

    Answers that are kept beforehand are to shifted images, and so is the batch beside a generator's images.
    """
    if config.source is not None or config.teacher_views or config.crop_padding is not None:
        return 1.0
    return PHOTO_AREA if any(shards.encoded for shards in selections) else 1.0


def crops_of_files(config: DistillConfig, selections: Sequence[Shards]) -> Crops | None:
    """The random crops of encoded files, where no generator's images are beside them."""
    area = 1.0 if config.crop_area is None else config.crop_area
    if area == 1 or config.source is not None or not selections or not all(shards.encoded for shards in selections):
        return None
    return Crops(area, config.seed)


def default_reestimate(student: Model) -> int:
    """Batches for new BatchNorm statistics at the end, where the running ones are of weights that are long gone.

    They are a mean over some 1 / momentum steps: over 10 with torch's default, over 100 in torchvision's MobileNetV3,
    over 3,000 in its MNASNet, while a run may have 500. benchmarks/quality/LOG.md has what it costs.
    """
    momenta = [layer.momentum for layer in batch_norms(student.module) if layer.momentum is not None]
    return REESTIMATED if momenta and min(momenta) < SLOW_MOMENTUM else 0


def begins_trained(student: Model, given: GivenModel, init: str) -> bool:
    """Whether the student is to be fine-tuned: it has weights of its own, and they are not for small images.

    Up to 64 pixels the rates of docs/results.md hold, unless the classifier is new. A student in int8 is always
    fine-tuned: its BatchNorms are folded away, and without them such rates destroy it. So are specialists, which are
    to change slightly.
    """
    if rounds(student.module) or isinstance(student.module, Specialists):
        return True
    if init == "teacher" or not (student.of_photographs or student.new_classifier):
        return False
    return bool(has_weights(student, given))


def has_weights(student: Model, given: GivenModel) -> bool | None:
    """Whether the student begins with more than random weights; None where nothing tells.

    A module that is at hand, and code that may load weights unasked, shows it by its normalization layers: before a
    training all weights of such a layer are equal.
    """
    if isinstance(given, str) and student.has_weights is not None:
        return student.has_weights
    norms = nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm
    weights = [layer.weight for layer in student.module.modules() if isinstance(layer, norms)]
    known = [weight for weight in weights if weight is not None]
    return any(len(weight.unique()) > 1 for weight in known) if known else None


def example_of(teacher: Model) -> torch.Tensor:
    """An image of the teacher's size: what a network is run on to find taps in it."""
    return torch.zeros(1, teacher.channels, *[teacher.image_size or 1] * 2)
