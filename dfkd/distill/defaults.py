"""What a distillation takes where no option says it and it depends on the networks; the rate's is in `optim`."""

from typing import Literal

import torch

from dfkd.config import DistillConfig
from dfkd.data.pool import ENCODED_ABOVE
from dfkd.distill.init.inherit import heir
from dfkd.models.features.find_taps import find_taps
from dfkd.models.features.taps import in_group
from dfkd.models.load import Model
from dfkd.system.errors import RequestError


def default_losses(config: DistillConfig, teacher: Model, student: Model) -> tuple[str, ...]:
    """What docs/results.md supports: `ofd` beside `kd`, for images as small as those that it was tried on.

    Its weight is for maps of their size. Networks need maps of several resolutions (a transformer has one, of its
    patches); a generator's images, and answers that were kept, are for the outputs.
    """
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


def example_of(teacher: Model) -> torch.Tensor:
    """An image of the teacher's size: what a network is run on to find taps in it."""
    return torch.zeros(1, teacher.channels, *[teacher.image_size or 1] * 2)
