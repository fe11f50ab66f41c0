"""The only training loop, for the distillation of students and the training of generators."""

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from dfkd.formats.run_records import Checkpoint
from dfkd.system import ranks
from dfkd.system.console import progress
from dfkd.system.errors import RequestError
from dfkd.system.memory import peak_memory_bytes
from dfkd.system.shares import means
from dfkd.system.signals import Interrupted, stop_request


@dataclass(frozen=True)
class Pace:
    """Number of steps, images per step, and steps between checkpoints and between rows of metrics."""

    steps: int
    batch_size: int
    checkpoint_every: int
    log_every: int


Measured = Tensor | float
_WRITTEN = ("step", "learning_rate", "images_per_second")
"""Columns of metrics.jsonl that the loop itself writes."""


@runtime_checkable
class Learner(Protocol):
    """State of a training, and the functions by which the loop advances it."""

    step: int
    seconds: float

    @property
    def plan(self) -> Pace:
        """Length of the training, and its intervals."""
        ...

    @property
    def hint(self) -> str:
        """Advice for the error message when a metric or a weight is not finite."""
        ...

    def warm_up(self) -> Mapping[str, Tensor] | None:
        """Do one piece of the work before the first step. Returns its metrics, or None if nothing is left to do."""
        ...

    def begin(self) -> None:
        """Prepare for the first step, or for the first one after a checkpoint was loaded."""
        ...

    def advance(self) -> Mapping[str, Tensor | float]:
        """Run one step, which adds 1 to `step`. Returns its metrics."""
        ...

    def tell(self, row: Mapping[str, float]) -> str:
        """Return the text of the progress bar for a row of metrics."""
        ...

    def learnt(self) -> Iterable[Mapping[str, Any]]:
        """Return the states that must stay finite."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """Return everything that a resumed training needs to continue as if uninterrupted."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], progress: Checkpoint) -> None:
        """Restore a checkpoint: its state, and the step and seconds in `progress`."""
        ...


@runtime_checkable
class Record(Protocol):
    """The files of a training: `dfkd.formats.run_folder.Progress`, or several of them."""

    def load(self) -> tuple[Mapping[str, Any], Checkpoint] | None:
        """Return the state and the progress of the last complete checkpoint, or None."""
        ...

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row to the metrics."""
        ...

    def save(self, state: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
        """Replace the checkpoint."""
        ...


def joined(learner: Mapping[str, Measured], source: Mapping[str, Measured]) -> dict[str, Tensor | float]:
    """Return the metrics of a learner and of its source as one row.

    A name of the source that is taken is written as `source.NAME`.
    """
    taken = {*learner, *_WRITTEN}
    return {**learner, **{f"source.{name}" if name in taken else name: value for name, value in source.items()}}


def train(learner: Learner, record: Record) -> None:
    """Train to the last step, from the record's checkpoint if there is one.

    With several processes, each runs every step, and rank 0 writes.
    Raises: RequestError when a metric or the weights are not finite, with step and term. The last checkpoint is kept.
    KeyboardInterrupt after SIGINT or SIGTERM, once the checkpoint is written from which the same command resumes.
    """
    plan = learner.plan
    found = ranks.from_first(record.load)
    if found is not None:
        learner.load_state_dict(*found)
    learner.begin()
    started, seconds_before = time.perf_counter(), learner.seconds
    total = plan.steps
    with progress("training", total, "steps", learner.step) as bar, stop_request() as stop:
        vote = ranks.Vote(stop)
        for piece in itertools.count(1):
            vote.cast()
            seen = learner.warm_up()
            signal = vote.result()
            if seen is None:
                break
            if piece % plan.log_every == 0 or signal is not None:
                _check_finite({name: float(value) for name, value in seen.items()}, learner.step, learner.hint)
            if piece % plan.checkpoint_every == 0 or signal is not None:
                learner.seconds = seconds_before + time.perf_counter() - started
                _save(learner, record)
            if signal is not None:
                raise Interrupted(signal, "what was made so far is saved; give the same command again to resume")
        logged_at, logged_step = time.perf_counter(), learner.step
        while learner.step < total:
            vote.cast()
            metrics = learner.advance()
            signal, step = vote.result(), learner.step
            last, save = step == total, step % plan.checkpoint_every == 0 or signal is not None
            if step % plan.log_every == 0 or save or last:
                now = time.perf_counter()
                row = means({name: float(value) for name, value in metrics.items()})
                _check_finite(row, step, learner.hint)
                rate = plan.batch_size * (step - logged_step) / (now - logged_at)
                if ranks.first() and (step % plan.log_every == 0 or last):
                    record.log({"step": step, **row, "images_per_second": rate})
                bar.advance(step - logged_step, learner.tell(row), row | _memory(), "agreement")
                logged_at, logged_step = now, step
                learner.seconds = seconds_before + now - started
            if save or last:
                _save(learner, record)
            if signal is not None:
                raise Interrupted(signal, f"step {step} is saved; give the same command again to resume")


def _memory() -> dict[str, float]:
    """Return the peak memory so far, for the progress bar: of the GPU if one is in use."""
    device = torch.device("cuda" if torch.cuda.is_initialized() else "cpu")
    return {"peak memory GB": peak_memory_bytes(device) / 1e9}


def _save(learner: Learner, record: Record) -> None:
    """Write a checkpoint on rank 0. The other ranks wait, so that none ends before the checkpoint exists."""
    check_weights(learner)
    progress = {"step": learner.step, "seconds": learner.seconds}
    ranks.from_first(lambda: record.save(learner.state_dict(), progress))


def _check_finite(row: Mapping[str, float], step: int, hint: str) -> None:
    wrong = [name for name, value in row.items() if not torch.isfinite(torch.tensor(value))]
    if wrong:
        term = next((name for name in wrong if name != "loss"), "loss")
        raise RequestError(
            f"the loss is no longer finite at step {step} (term {term}); the last checkpoint before it, if any, is "
            f"kept; {hint}"
        )


def check_weights(learner: Learner) -> None:
    """Raise RequestError unless all weights are finite.

    A step with a finite loss can make weights that are not finite. They must not replace the last good checkpoint.
    """
    for state in learner.learnt():
        for name, value in _tensors_in(state):
            if not torch.isfinite(value).all():
                raise RequestError(
                    f"the weights are no longer finite at step {learner.step} ({name}); the last checkpoint before it, "
                    f"if any, is kept; {learner.hint}"
                )


def _tensors_in(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested state dicts and lists, with their keys."""
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from _tensors_in(value, f"{name}.{key}" if name else str(key))
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from _tensors_in(value, name)
