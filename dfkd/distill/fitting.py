"""Training of a student without gradients: each step collects a batch, and the end of the training fits the student."""

import time
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dfkd.config import DistillConfig
from dfkd.config.texts import flag
from dfkd.distill.observed import entropy
from dfkd.distill.trainer import Trainer
from dfkd.formats.run_records import Checkpoint
from dfkd.models.architectures.estimator import Estimator
from dfkd.models.features.outputs import Outputs
from dfkd.models.load import Model
from dfkd.system import ranks
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.training.sources import Batch

MOST_BYTES = 2**31
"""Largest size of the collected images in memory, in bytes, as float32."""
_UNUSED = (
    *("optimizer", "lr", "weight_decay", "schedule", "warmup", "ema", "batchnorm", "dropout", "reestimate"),
    *("class_dropping", "batches", "keep_weights"),
)
"""Options that have no effect on a student without gradients."""


def configured(config: DistillConfig, student: Model) -> DistillConfig:
    """Return the options for a student without gradients: one epoch if no length is given. Others stay unchanged.

    Raises: RequestError for options that have no effect on this student.
    """
    if not isinstance(student.module, Estimator):
        return config
    what = f"--student {student.spec} is fitted, without gradients:"
    if config.loss and tuple(config.loss) != Estimator.learns_by:
        raise RequestError(f"{what} its targets are the teacher's probabilities; leave out --loss")
    defaults = {field.name: field.default for field in fields(DistillConfig)}
    for name in _UNUSED:
        if getattr(config, name) != defaults[name]:
            raise RequestError(f"{what} {flag(name)} {getattr(config, name)} changes nothing; leave it out")
    if config.source is not None:
        raise RequestError(f"{what} a generator needs gradients; leave out --source")
    if ranks.count() > 1:
        raise RequestError(f"{what} it runs in one process; start it without torchrun")
    return config if config.steps is not None else replace(config, epochs=config.epochs or 1)


def check_size(images: int, student: Model) -> None:
    """Raise RequestError if the images of all steps exceed `MOST_BYTES`."""
    size = images * student.channels * (student.image_size or 1) ** 2 * 4
    if isinstance(student.module, Estimator) and size > MOST_BYTES:
        raise RequestError(
            f"--student {student.spec} is fitted to all {images:,} images at once, {size / 2**30:.1f} GiB; give fewer "
            f"--steps ({MOST_BYTES / 2**30:.0f} GiB at the most)"
        )


class Fitting(Trainer):
    """Trainer whose student is fitted after the last step, to the batches of all steps."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._lessons: list[tuple[Tensor, Tensor]] = []

    def begin(self) -> None:
        """Obtain recorded answers; the student stays as it is until the end."""
        self.seconds += self.have_recorded()

    def learn(
        self,
        batch: Batch,
        view: Float[Tensor, "batch channels height width"],
        theirs: Outputs,
        learned: Mapping[str, Tensor] | None = None,
        ours: Outputs | None = None,
    ) -> dict[str, Tensor | float]:
        """Collect the views of a batch and the teacher's probabilities, and return the teacher's entropy in nats."""
        self.batch = batch
        p = theirs.logits.softmax(dim=1)
        self._lessons.append((view.flatten(1).float().cpu(), p.cpu()))
        self.step += 1
        return {"teacher_entropy": entropy(p)}

    def tell(self, row: Mapping[str, float]) -> str:
        """Return the progress bar's text."""
        return "collecting"

    def finish(self) -> None:
        """Fit the student. Raises: RequestError if the estimator rejects the data."""
        started = time.perf_counter()
        views, answers = self._collected()
        estimator = self.student.module
        assert isinstance(estimator, Estimator)
        say(f"fitting the student to {len(views):,} images")
        try:
            estimator.fit(views.numpy(), answers.double().numpy(), self.plan.seed)
        except ValueError as error:
            raise RequestError(f"--student {type(estimator).__name__.lower()} cannot be fitted: {error}") from None
        self.seconds += time.perf_counter() - started
        super().finish()

    def state_dict(self) -> dict[str, Any]:
        """Return the trainer's state with the collected views and probabilities."""
        views, answers = self._collected()
        return {**super().state_dict(), "views": views, "answers": answers}

    def load_state_dict(self, state: Mapping[str, Any], progress: Checkpoint) -> None:
        """Restore the training from a checkpoint."""
        super().load_state_dict(state, progress)
        self._lessons = [(state["views"], state["answers"])]

    def _collected(self) -> tuple[Tensor, Tensor]:
        """Return all collected views [images, values] and the teacher's probabilities [images, classes]."""
        views, answers = zip(*self._lessons, strict=True)
        self._lessons = [(torch.cat(views), torch.cat(answers))]
        return self._lessons[0]
