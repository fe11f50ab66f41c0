"""The training loop, the only one: batches from a source, views, teacher, student, objective, step."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dfkd.console import progress
from dfkd.device import Place
from dfkd.distill.augment import crop_and_flip, mix
from dfkd.distill.average import Average
from dfkd.distill.batchnorm import reestimate
from dfkd.distill.objective import Objective
from dfkd.distill.optim import learning_rate, set_rate
from dfkd.distill.sources import Batch, Source
from dfkd.errors import RequestError
from dfkd.outputs import Outputs
from dfkd.runs import Run
from dfkd.select.class_dropping import kept_classes
from dfkd.signals import Interrupted, stop_request
from dfkd.taps import Tapped
from dfkd.teacher import Classifier, answer


@dataclass(frozen=True)
class Plan:
    """The numbers that the loop follows; `warmup` is a share of the steps, `class_dropping` a probability."""

    steps: int
    batch_size: int
    lr: float
    warmup: float
    crop_padding: int
    flip: bool
    mixup: float
    cutmix: float
    ema: float
    reestimate: int
    class_dropping: float
    checkpoint_every: int
    log_every: int
    seed: int


class Trainer:
    """Everything that changes while a student learns, with one step of it, and its state for a checkpoint."""

    def __init__(
        self,
        teacher: Classifier,
        student: Tapped,
        source: Source,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        plan: Plan,
    ) -> None:
        self.teacher, self.student, self.source = teacher, student, source
        self.objective, self.optimizer, self.plan = objective, optimizer, plan
        self.place: Place = teacher.place
        self.generator = torch.Generator(self.place.device).manual_seed(plan.seed)
        self.average: Average | None = None
        if plan.ema:  # the losses' own parameters too: some end up in the student
            self.average = Average([*student.module.state_dict().values(), *objective.parameters()], plan.ema)
        self.step, self.seconds = 0, 0.0

    def view(self, batch: Batch) -> Float[Tensor, "batch channels height width"]:
        """A batch as teacher and student both see it."""
        plan = self.plan
        pixels = batch.pixels.to(self.place.device, non_blocking=True)
        view = self.teacher.view(crop_and_flip(pixels, plan.crop_padding, plan.flip, self.generator))
        return mix(view, plan.mixup, plan.cutmix, self.generator)

    def teach(self, view: Float[Tensor, "batch channels height width"], batch: Batch) -> Outputs:
        """The teacher's answer; classes are dropped on the very view that the student learns from."""
        outputs = self.teacher.outputs(view)
        kept = kept_classes(outputs.logits, self.plan.class_dropping) if self.plan.class_dropping else None
        rows = None if self.plan.mixup or self.plan.cutmix else batch.rows  # a mixed view is of two images
        rows = None if rows is None else rows.to(self.place.device, non_blocking=True)
        return replace(outputs, kept=kept, view=view, rows=rows)

    def answer(self, view: Float[Tensor, "batch channels height width"]) -> Outputs:
        """The student's answer."""
        return answer(self.student, self.place, view)

    def advance(self) -> dict[str, Tensor]:
        """One optimizer step. Returns metrics as tensors: reading them here would wait for the device at every step."""
        plan = self.plan
        set_rate(self.optimizer, learning_rate(self.step, plan.steps, plan.lr, plan.warmup))
        batch = self.source.sample(plan.batch_size)
        view = self.view(batch)
        theirs, ours = self.teach(view, batch), self.answer(view)
        total, values = self.objective(ours, theirs)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.step)
        self.step += 1
        return {"loss": total.detach(), **values, **_observed(ours, theirs)}

    def finish(self) -> None:
        """After the last step: make the student what is written and measured, from what was learnt."""
        started = time.perf_counter()
        if self.average is not None:
            self.average.apply()
        self.objective.finish()
        if self.plan.reestimate:
            batches = (self.source.sample(self.plan.batch_size) for _ in range(self.plan.reestimate))
            reestimate(self.student.module, map(self.view, batches))
        self.seconds += time.perf_counter() - started
        _check_weights(self)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to become the very run that was not interrupted."""
        return {
            "student": self.student.module.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "source": self.source.state_dict(),
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            **({"average": self.average.state_dict()} if self.average is not None else {}),
            **({"cuda": torch.cuda.get_rng_state()} if self.place.device.type == "cuda" else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        for name in ("student", "objective", "optimizer", "source"):
            part = self.student.module if name == "student" else getattr(self, name)
            part.load_state_dict(state[name])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"])
        self.step, self.seconds = progress["step"], progress["seconds"]


def train(trainer: Trainer, run: Run) -> None:
    """Train to the last step, from the run's checkpoint if it has one.

    Raises: RequestError when loss or weights are no longer finite, naming step and term: the checkpoint before is kept.
    KeyboardInterrupt after SIGINT or SIGTERM, once the checkpoint is written from which the same command goes on.
    """
    plan = trainer.plan
    found = run.load()
    if found is not None:
        trainer.load_state_dict(*found)
    trainer.student.module.train()
    started, seconds_before = time.perf_counter(), trainer.seconds
    logged_at, logged_step = started, trainer.step
    total = plan.steps
    with progress("training", total, "steps", trainer.step) as bar, stop_request() as stop:
        while trainer.step < total:
            metrics = trainer.advance()
            learned = trainer.source.update(trainer.student.module)
            step = trainer.step
            last, save = step == total, step % plan.checkpoint_every == 0 or stop.signal is not None
            if step % plan.log_every == 0 or save or last:
                now = time.perf_counter()
                row = {name: float(value) for name, value in (metrics | learned).items()}
                _check_finite(row, step)
                rate = plan.batch_size * (step - logged_step) / (now - logged_at)
                if step % plan.log_every == 0 or last:
                    lr = trainer.optimizer.param_groups[0]["lr"]
                    run.log({"step": step, **row, "learning_rate": lr, "images_per_second": rate})
                bar.advance(step - logged_step, f"loss {row['loss']:.4f}, agreement {row['agreement']:.3f}")
                logged_at, logged_step = now, step
                trainer.seconds = seconds_before + now - started
            if save or last:
                _check_weights(trainer)
                run.save(trainer.state_dict(), {"step": step, "seconds": trainer.seconds})
            if stop.signal is not None:
                raise Interrupted(stop.signal, f"step {step} is saved, the same command goes on from there")


def _observed(ours: Outputs, theirs: Outputs) -> dict[str, Tensor]:
    """What tells a healthy run from a sick one: agreement in the batch, and the entropy of both in nats."""
    with torch.no_grad():
        agreement = (ours.logits.argmax(dim=1) == theirs.logits.argmax(dim=1)).float().mean()
        entropies = [_entropy(outputs.logits) for outputs in (ours, theirs)]
    return {"agreement": agreement, "student_entropy": entropies[0], "teacher_entropy": entropies[1]}


def _entropy(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    p = logits.softmax(dim=1)
    return -torch.xlogy(p, p).sum(dim=1).mean()


def _check_finite(row: Mapping[str, float], step: int) -> None:
    wrong = [name for name, value in row.items() if not torch.isfinite(torch.tensor(value))]
    if "loss" in wrong:
        term = next((name for name in wrong if name != "loss"), "loss")
        raise RequestError(
            f"the loss is no longer finite at step {step} (term {term}); the last checkpoint before it, if any, is "
            "kept; start again in another folder with a lower --lr"
        )


def _check_weights(trainer: Trainer) -> None:
    """A step whose loss was finite can leave weights that are not: they must not replace the last good checkpoint."""
    for module in (trainer.student.module, trainer.objective):
        for name, value in module.state_dict().items():
            if not torch.isfinite(value).all():
                raise RequestError(
                    f"the weights are no longer finite at step {trainer.step} ({name}); the last checkpoint before it, "
                    "if any, is kept; start again in another folder with a lower --lr"
                )
