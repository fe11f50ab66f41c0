"""What a distillation takes where no option says it and it depends on the networks; the rate's is in `optim`."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from dfkd.config import DistillConfig
from dfkd.data.images.frame import ENCODED_ABOVE, Crops
from dfkd.distill.init.inherit import heir
from dfkd.formats.shards import Shards
from dfkd.models.architectures.specialists import Specialists
from dfkd.models.fake_int8 import rounds
from dfkd.models.features.find_taps import find_taps
from dfkd.models.features.taps import in_group
from dfkd.models.load import Model
from dfkd.models.own import GivenModel
from dfkd.system.errors import RequestError

PHOTO_AREA = 0.35
"""The smallest share of a photograph that a random crop takes."""


def default_losses(config: DistillConfig, teacher: Model, student: Model) -> tuple[str, ...]:
    """What docs/results.md supports: `ofd` beside `kd`, for images as small as those that it was tried on.

    Its weight is for maps of their size. Networks need maps of several resolutions (a transformer has one, of its
    patches); a generator's images, and answers that were kept, are for the outputs.
    """
    if learns_by := getattr(type(student.module), "learns_by", ()):  # an architecture of ours with a loss of its own
        return tuple(learns_by)
    if config.teacher_views or config.source is not None or (teacher.image_size or 0) > ENCODED_ABOVE:
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


def default_init(teacher: Model, student: Model) -> Literal["none", "teacher"]:
    """What docs/results.md supports: the teacher's layers, where they make a whole student."""
    return "teacher" if heir(student, teacher) and student.has_weights is False else "none"


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


def begins_trained(student: Model, given: GivenModel, init: str) -> bool:
    """Whether the student is to be fine-tuned: it has weights of its own, and they are not for small images.

    Up to 64 pixels the rates of docs/results.md hold, unless the classifier is new. A module that is at hand, and code
    that loads weights unasked, is trained if its normalization layers are no longer as they began. A student in
    int8 is always fine-tuned: its BatchNorms are folded away, and without them such rates destroy it. So are
    specialists, which are to change slightly.
    """
    if rounds(student.module) or isinstance(student.module, Specialists):
        return True
    if init == "teacher" or not ((student.image_size or 0) > ENCODED_ABOVE or student.new_classifier):
        return False
    if isinstance(given, str) and student.has_weights is not None:
        return student.has_weights
    norms = nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm
    layers = [layer for layer in student.module.modules() if isinstance(layer, norms)]
    return any(layer.weight is not None and len(layer.weight.unique()) > 1 for layer in layers)


def example_of(teacher: Model) -> torch.Tensor:
    """An image of the teacher's size: what a network is run on to find taps in it."""
    return torch.zeros(1, teacher.channels, *[teacher.image_size or 1] * 2)
