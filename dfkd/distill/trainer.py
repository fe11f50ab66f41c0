"""The learner of a distillation: one step runs source, view, teacher, student, objective and optimizer."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dfkd.distill.init.fit import Fit
from dfkd.distill.lessons import Lessons, Plan
from dfkd.distill.objective import Objective
from dfkd.distill.observed import divergences, observe
from dfkd.distill.setting import Counted
from dfkd.distill.teacher_cache.views import TeacherViews
from dfkd.formats.kept_weights import WeightKeeper
from dfkd.formats.run_records import Checkpoint
from dfkd.models.classifier import Classifier, answer
from dfkd.models.fake_int8 import fixed_ranges
from dfkd.models.features.outputs import Outputs
from dfkd.models.features.spread import spread
from dfkd.models.features.taps import Tapped
from dfkd.models.state import state_to_write, tensors_of
from dfkd.system import ranks
from dfkd.system.errors import RequestError
from dfkd.system.foreign import Foreign, is_theirs
from dfkd.system.shares import own_random, share, weight, whole
from dfkd.training.bn_reestimate import batch_norms, reestimate
from dfkd.training.data_parallel import Compute, data_parallel
from dfkd.training.ema import Average
from dfkd.training.log import SHOWN
from dfkd.training.loop import check_weights, joined
from dfkd.training.mode import set_mode
from dfkd.training.optim import learning_rate, set_rate
from dfkd.training.sources import Batch, Source


class Trainer(Lessons):
    """State of a student's training: one optimizer step, and everything that a checkpoint saves."""

    def __init__(
        self,
        teacher: Classifier,
        student: Tapped,
        source: Source,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        plan: Plan,
        *,
        counted: Counted | None = None,
        fit: Fit | None = None,
        record: Callable[[], TeacherViews] | None = None,
        cropped: bool = False,
    ) -> None:
        """Combine teacher, student, source, losses and optimizer.

        `counted` counts the images on which losses run the teacher. `fit` is done before the first step. `record`
        computes the teacher's answers beforehand; the student then learns from these alone. `cropped` means that the
        source's images are random crops already.
        """
        super().__init__(teacher, plan, record, cropped)
        self.student, self.source = student, source
        self.counted = counted or Counted(teacher.answer)
        self.objective, self.optimizer = objective, optimizer
        self.average: Average | None = None
        if plan.ema:  # also the losses' own parameters: some become part of the student
            self.average = Average([*tensors_of(student.module).values(), *objective.parameters()], plan.ema)
        self._fit, self._fitted_on = fit, fit.views if fit is not None else 0
        self._compute: Compute = self._loss
        self.step, self.seconds = 0, 0.0
        self.batch: Batch | None = None
        """Batch of the last step."""
        self.keeper: WeightKeeper | None = None
        """Writer of the student's weights at some steps (`--keep-weights`), or None."""

    @property
    def hint(self) -> str:
        """Advice for the error message when a loss or a weight is not finite."""
        made = " or a lower rate of the generator (NAME:lr=...)" if self.source.images is None else ""
        return f"give --lr below {self.plan.lr:g}{made}: the run then starts anew"

    @property
    def fits(self) -> str | None:
        """Layers of the student that are still to be fitted to the teacher before the first step, in words."""
        return None if self._fit is None else self._fit.what

    @property
    def teacher_forwards(self) -> int:
        """Number of images that the teacher has answered for the whole training.

        Recorded answers count, whether this run computed them or found them in the cache: the student learned from
        them.
        """
        lessons = self.plan.steps * self.plan.batch_size
        if self.recorded is not None:
            lessons = self.recorded.views * self.recorded.images
        return lessons + self._fitted_on + self.counted.images + self.source.teacher_forwards

    def warm_up(self) -> Mapping[str, Tensor] | None:
        """Do a piece of the source's work before the first step, and return its metrics; None if none is left."""
        return self.source.warm_up(self.judge)

    def begin(self) -> None:
        """Prepare the first step: obtain recorded answers, fit layers, and set the student to training mode."""
        self.seconds += self.have_recorded()
        if self._fit is not None:
            started = time.perf_counter()
            self._fit.run(self.student.module, self.teacher, self.augment)
            self._fit = None
            self.seconds += time.perf_counter() - started
        set_mode(self.student.module, self.plan.batchnorm == "kept", self.plan.dropout == "on")
        self._compute = data_parallel([self.student.module, self.objective], self._loss, self.place.device)
        if self.step == 0:
            self._keep()

    def _keep(self) -> None:
        """Write the student's weights if the keeper wants those of this step."""
        keeper = self.keeper
        if keeper is not None and keeper.due(self.step):
            ranks.from_first(lambda: keeper.write(self.step, state_to_write(self.student.module)))

    def answer(self, view: Float[Tensor, "batch channels height width"]) -> Outputs:
        """Return the student's outputs for a view."""
        return answer(self.student, self.place, view)

    def reply(self, view: Float[Tensor, "batch channels height width"]) -> Outputs:
        """Return the student's outputs in training mode for this process's share of a view."""
        with own_random(view.device):
            return self.answer(view)

    def _loss(
        self, view: Float[Tensor, "batch channels height width"], theirs: Outputs, ours: Outputs | None = None
    ) -> tuple[Float[Tensor, ""], tuple[Outputs, dict[str, Tensor]]]:
        """Return the total loss, and with it the student's outputs and the value of each loss by name."""
        ours = ours or self.reply(view)
        total, values = self.objective(ours, theirs, self.plan.batch_size)
        return total, (ours, values)

    def judge(self, view: Float[Tensor, "batch channels height width"]) -> Outputs:
        """Return the student's outputs in training mode, for a source that learns from the student.

        BatchNorm's running statistics do not change, nor do the ranges of a student in int8. Each rank computes the
        outputs of its rows of the view. The source takes no gradients of the student's weights, and none are exchanged.
        """
        layers = batch_norms(self.student.module)
        for layer in layers:  # it then normalizes by the batch in training mode, and updates no statistics
            layer.track_running_stats = False
        try:
            with fixed_ranges(self.student.module):
                return spread(self.answer)(view)
        finally:
            for layer in layers:
                layer.track_running_stats = True

    def _learnt_from(self) -> object:
        """Return the first network or loss outside `dfkd`, to name it if the backward pass fails.

        torch does not name the code that overwrote a tensor.
        """
        return next(filter(is_theirs, (self.student.module, *self.objective.written)), None)

    def draw(self) -> Batch:
        """Draw the next batch; with several processes, this process's share of it."""
        size = self.plan.batch_size
        return self.source.sample(size, share(size) if ranks.count() > 1 else None)

    def advance(self) -> dict[str, Tensor | float]:
        """Take one optimizer step on the next batch, and return its metrics.

        Metrics are tensors: a conversion to numbers would synchronize with the device at every step.
        """
        learned = self.source.update(self.judge)
        batch = self.draw()
        return self.learn(batch, *self.lesson(batch), learned)

    def learn(
        self,
        batch: Batch,
        view: Float[Tensor, "batch channels height width"],
        theirs: Outputs,
        learned: Mapping[str, Tensor] | None = None,
        ours: Outputs | None = None,
    ) -> dict[str, Tensor | float]:
        """Take the optimizer step for a view and the teacher's outputs, and return its metrics.

        `learned` are metrics of the source. `ours` are the student's outputs for the view, if they are already
        computed.
        """
        plan, self.batch = self.plan, batch
        rate = learning_rate(self.step, plan.steps, plan.lr, plan.warmup)
        set_rate(self.optimizer, rate)
        total, (ours, values) = self._compute(view, theirs, ours)
        if not any(output.requires_grad for output in (ours.logits, *ours.features.values())):
            raise RequestError(  # losses with layers of their own would train these alone
                "no gradient leads from the student's outputs to its weights: their requires_grad is off, or its "
                "forward uses torch.no_grad or detach; change that"
            )
        if not total.requires_grad:
            raise RequestError(
                f"the losses ({', '.join(values)}) give the student no gradient; add another one, such as kd"
            )
        if self.source.follows and batch.rows is not None:
            self.source.seen(batch.rows, whole(divergences(ours, theirs), plan.batch_size))
        self.optimizer.zero_grad(set_to_none=True)
        with Foreign("the backward pass of student and losses fails:", self._learnt_from()):
            total.backward()
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.step)
        self.step += 1
        self._keep()
        observed = observe(ours, theirs)
        if ranks.count() > 1:  # so that the mean over the ranks is the mean over the batch
            observed = {name: value * weight(plan.batch_size) for name, value in observed.items()}
        measured = {"loss": total.detach(), **values, **observed}
        return {**joined(measured, learned or {}), "learning_rate": rate}

    def tell(self, row: Mapping[str, float]) -> str:
        """Return the progress bar's text for a row of metrics."""
        return f"loss {row['loss']:.4f}, agreement {row['agreement']:.3f}"

    def pictures(self) -> dict[str, np.ndarray]:
        """Return images of the last batch for the loggers: `batch` if images are stored, `generated` otherwise."""
        if self.batch is None:
            return {}
        name = "generated" if self.source.images is None else "batch"
        return {name: self.batch.pixels[:SHOWN].cpu().numpy()}

    def learnt(self) -> Iterable[Mapping[str, Any]]:
        """Return the state dictionaries of student, objective and source, which have to stay finite."""
        return self.student.module.state_dict(), self.objective.state_dict(), self.source.state_dict()

    def finish(self) -> None:
        """Finish training: apply the weight average, finish losses, re-estimate BatchNorm, check the weights."""
        started = time.perf_counter()
        if self.average is not None:
            self.average.apply()
        self.objective.finish()
        if self.plan.reestimate:
            batches = (self.source.sample(self.plan.batch_size) for _ in range(self.plan.reestimate))
            reestimate(self.student.module, map(self.augment, batches))
        self.seconds += time.perf_counter() - started
        check_weights(self)

    def _parts(self) -> dict[str, Any]:
        """Return what has a state of its own, by its name in a checkpoint."""
        student = self.student.module
        return {"student": student, "objective": self.objective, "optimizer": self.optimizer, "source": self.source}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs to give the same student as an uninterrupted run."""
        return {
            **{name: part.state_dict() for name, part in self._parts().items()},
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            "teacher_forwards": self.counted.images,
            **({"teacher_views": self.recorded.state_dict()} if self.recorded is not None else {}),
            **({"average": self.average.state_dict()} if self.average is not None else {}),
            **({"cuda": torch.cuda.get_rng_state(self.place.device)} if self.place.device.type == "cuda" else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any], progress: Checkpoint) -> None:
        """Restore the training from a checkpoint: its state, and the step and seconds in `progress`."""
        self._fit = None  # the checkpoint was written after the layers were fitted
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.have_recorded()
        if self.recorded is not None:
            self.recorded.load_state_dict(state["teacher_views"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
        self.counted.images = state["teacher_forwards"]
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.place.device)
        self.step, self.seconds = progress.step, progress.seconds
