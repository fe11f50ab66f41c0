"""The student's input and target in each step: views of a batch's images, and the teacher's outputs for them."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from dfkd.data.images.augment import crop, crop_and_flip, enlarge, jitter, mix
from dfkd.distill.teacher_cache.views import TeacherViews
from dfkd.models.classifier import Classifier
from dfkd.models.features.outputs import Outputs
from dfkd.select.class_dropping import kept_classes
from dfkd.system.device import Place
from dfkd.system.shares import whole
from dfkd.training.loop import Pace
from dfkd.training.sources import Batch


@dataclass(frozen=True)
class Plan(Pace):
    """Numbers that the training loop uses.

    `warmup` is a share of the steps. `class_dropping` is the probability below which the teacher's classes are dropped.
    `batchnorm` is `batch` or `kept`, and `dropout` is `on` or `off`, never `auto`.
    """

    lr: float
    warmup: float
    crop_padding: int
    crop_area: float
    flip: bool
    color_jitter: float | None
    mixup: float
    cutmix: float
    ema: float
    batchnorm: str
    dropout: str
    reestimate: int
    class_dropping: float
    seed: int


class Lessons:
    """Source of views and teacher outputs for batches; the teacher runs in each step, or once beforehand."""

    def __init__(
        self, teacher: Classifier, plan: Plan, record: Callable[[], TeacherViews] | None = None, cropped: bool = False
    ) -> None:
        """Keep the teacher and the plan, and seed the generator of the views.

        `record` computes the teacher's answers beforehand. `cropped` means that the images are random crops already.
        """
        self.teacher, self.plan = teacher, plan
        self.place: Place = teacher.place
        self.generator = torch.Generator(self.place.device).manual_seed(plan.seed)
        self._record, self._area = record, 1.0 if cropped else plan.crop_area
        self.recorded: TeacherViews | None = None
        """Recorded views and the teacher's answers to them, or None if none were recorded."""

    def have_recorded(self) -> float:
        """Obtain the teacher's recorded answers, if they are to be computed beforehand.

        Returns: the seconds that it took, as part of the run's time. Answers found in the cache take almost none.
        """
        started = time.perf_counter()
        if self._record is not None and self.recorded is None:
            self.recorded = self._record()
        return time.perf_counter() - started

    def augment(self, batch: Batch) -> Float[Tensor, "batch channels height width"]:
        """Return the view of a batch, or of its share, that teacher and student both see.

        Random numbers are drawn for the whole batch. Images are mixed with those of all ranks.
        """
        plan, part = self.plan, batch.share
        pixels = batch.pixels.to(self.place.device, non_blocking=True)
        pixels = crop_and_flip(pixels, plan.crop_padding, plan.flip, self.generator, part)
        if plan.color_jitter:
            images = jitter(pixels.permute(0, 3, 1, 2) / 255, plan.color_jitter, self.generator, part)
            view = self.teacher.model.preprocess.normalized(images)
        else:
            view = self.teacher.preprocess(pixels)
        view = enlarge(view, self._area, self.generator, part)
        if part is None or not (plan.mixup or plan.cutmix):
            return mix(view, plan.mixup, plan.cutmix, self.generator)
        return mix(whole(view, part.of), plan.mixup, plan.cutmix, self.generator)[part.rows]

    def teach(self, view: Float[Tensor, "batch channels height width"], batch: Batch) -> Outputs:
        """Return the teacher's outputs for a view; classes are dropped by the logits of this same view."""
        return self.completed(self.teacher.outputs(view), view, batch)

    def lesson(self, batch: Batch) -> tuple[Float[Tensor, "batch channels height width"], Outputs]:
        """Return the view of a batch for the student, and the teacher's outputs for the same view."""
        if self.recorded is None:
            view = self.augment(batch)
            return view, self.teach(view, batch)
        assert batch.rows is not None
        answers = self.recorded.take(batch.rows)
        crops, logits = answers if batch.share is None else (answer[batch.share.rows] for answer in answers)
        pixels, crops, logits = (x.to(self.place.device, non_blocking=True) for x in (batch.pixels, crops, logits))
        view = self.teacher.preprocess(crop(pixels, self.plan.crop_padding, crops))
        return view, self.completed(Outputs(logits), view, batch)

    def completed(self, outputs: Outputs, view: Float[Tensor, "batch channels height width"], batch: Batch) -> Outputs:
        """Return the teacher's outputs together with what losses may read of the batch: kept classes, view and rows."""
        kept = kept_classes(outputs.logits, self.plan.class_dropping) if self.plan.class_dropping else None
        rows = None if self.plan.mixup or self.plan.cutmix else batch.rows  # a mixed view shows two images
        if rows is not None:
            own = rows if batch.share is None else rows[batch.share.rows]
            rows = own.to(self.place.device, non_blocking=True)
        return replace(outputs, kept=kept, view=view, rows=rows)
