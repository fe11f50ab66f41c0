"""Students that learn together: all share the batch, the view and the teacher's forward pass of every step."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.distill.grafting import graft
from dfkd.distill.stale import StaleCopies
from dfkd.distill.trainer import Trainer
from dfkd.formats.run_folder import READY, Progress
from dfkd.formats.run_records import Checkpoint
from dfkd.models.classifier import Classifier, answer
from dfkd.models.features.outputs import Outputs
from dfkd.models.features.taps import Tapped
from dfkd.system.errors import RequestError
from dfkd.system.random_state import Turn
from dfkd.training.loop import Pace


class Cohort:
    """Several trainers as one learner, on the same batches and views.

    Each student becomes bit for bit what it would become alone, unless it learns from others. A student that is ahead,
    because of an earlier run, waits for the others. Students that learn from each other are always at the same step.
    All run on the view, and then each takes its step with the others' logits.
    """

    def __init__(self, trainers: Sequence[Trainer], turns: Sequence[Turn], graft_every: int = 0) -> None:
        """Combine trainers of the same images and views.

        `turns` hold the random state in which each trainer was built. The students exchange filters every `graft_every`
        steps; 0 means never.
        """
        self.students, self._turns = list(trainers), list(turns)
        self._reads = any(trainer.objective.reads_peers for trainer in trainers)
        self._graft_every = graft_every
        self._stale = StaleCopies((trainer.objective.peers_every for trainer in trainers), trainers[0].place)
        self._teacher = _SharedTeacher([trainer.teacher for trainer in trainers])
        self.step = 0
        self._seconds = 0.0

    @property
    def plan(self) -> Pace:
        """Steps, batch size, and intervals of checkpoints and logs, as in the first student's plan."""
        return self.students[0].plan

    @property
    def hint(self) -> str:
        """Advice for the error message when a loss or a weight is not finite."""
        return f"the number before the name is the student's; {self.students[0].hint}"

    @property
    def seconds(self) -> float:
        """Training time in seconds of the students that are at this step."""
        return self._seconds

    @seconds.setter
    def seconds(self, seconds: float) -> None:
        for number in self._due():
            self.students[number].seconds += seconds - self._seconds
        self._seconds = seconds

    def warm_up(self) -> None:
        """Return None: no generator trains with the students."""

    def begin(self) -> None:
        """Prepare the first step of each student."""
        for student, turn in zip(self.students, self._turns, strict=True):
            with turn():
                student.begin()
        self.step = min(student.step for student in self.students)

    def advance(self) -> dict[str, Tensor | float]:
        """Take one step of every student that is not ahead.

        Returns: the metrics of all these students, each name prefixed by the student's number.
        """
        due = self._due()
        first = self.students[due[0]]
        batch = first.draw()
        if first.recorded is None:
            view = first.augment(batch)
            answers = self._teacher(view, due)
            theirs = {n: self.students[n].completed(answers[n], view, batch) for n in due}
        else:
            view, kept = first.lesson(batch)
            theirs = dict.fromkeys(due, kept)
        replies = self._replies(view) if self._reads else {}
        said = {1: [reply.logits.detach() for reply in replies.values()]}
        said |= self._stale.answers(self._modules, view, self.step)
        row: dict[str, Tensor | float] = {}
        for n in due:
            heard = said[self.students[n].objective.peers_every]
            peers = tuple(logits for other, logits in enumerate(heard) if other != n)
            with self._turns[n]():
                metrics = self.students[n].learn(batch, view, replace(theirs[n], peers=peers), None, replies.get(n))
            row |= {f"{n + 1}.{name}": value for name, value in metrics.items()}
        self.step += 1
        every = self._graft_every
        if every and self.step % every == 0 and self.step < self.plan.steps:  # not after the last step
            graft(self._modules)
        return row

    def tell(self, row: Mapping[str, float]) -> str:
        """Return the progress bar's text: the loss of each student, or `waits`."""
        losses = (row.get(f"{n + 1}.loss") for n in range(len(self.students)))
        return "loss " + " ".join("waits" if loss is None else f"{loss:.4f}" for loss in losses)

    def learnt(self) -> Iterable[Mapping[str, Any]]:
        """Yield the states that have to stay finite, by the student's number."""
        for number, student in enumerate(self.students, 1):
            yield from ({str(number): state} for state in student.learnt())

    def finish(self, numbers: Sequence[int]) -> None:
        """Finish the training of the students with these numbers."""
        self._level()
        for number in numbers:
            with self._turns[number]():
                self.students[number].finish()

    def state_dict(self) -> dict[str, Any]:
        """Return state and progress of each student; None for a student that is ahead, which keeps its checkpoint."""
        self._level()
        states: list[dict[str, Any] | None] = []
        for number, (student, turn) in enumerate(zip(self.students, self._turns, strict=True)):
            with turn():
                progress = {"step": student.step, "seconds": student.seconds}
                due = number in self._due()
                state = student.state_dict() | self._stale.state_of(number)
                states.append({"state": state, "progress": progress} if due else None)
        return {"students": states}

    def load_state_dict(self, state: Mapping[str, Any], progress: Checkpoint) -> None:
        """Restore each student that has a checkpoint from its own."""
        for student, turn, found in zip(self.students, self._turns, state["students"], strict=True):
            if found is not None:
                with turn():
                    student.load_state_dict(*found)
        if all(found is not None for found in state["students"]):
            self._stale.load(self._modules, [found[0] for found in state["students"]])

    @property
    def _modules(self) -> list[nn.Module]:
        return [student.student.module for student in self.students]

    def _due(self) -> list[int]:
        """Return the numbers of the students that are at this step."""
        return [n for n, student in enumerate(self.students) if student.step == self.step]

    def _level(self) -> None:
        """Copy the state of images and views from the first student at this step to the others.

        Only the first student draws them.
        """
        first, *others = (self.students[n] for n in self._due())
        for other in others:
            other.source.load_state_dict(first.source.state_dict())
            other.generator.set_state(first.generator.get_state())
            if first.recorded is not None and other.recorded is not None:
                other.recorded.load_state_dict(first.recorded.state_dict())

    def _replies(self, view: Float[Tensor, "batch channels height width"]) -> dict[int, Outputs]:
        """Return every student's outputs for a view."""
        replies = {}
        for number, (student, turn) in enumerate(zip(self.students, self._turns, strict=True)):
            with turn():
                replies[number] = student.reply(view)
        return replies


class _SharedTeacher:
    """One teacher for several students: one forward pass per view computes the features that any of them reads.

    Taps may change how a network is folded (`folded`). Students whose folded teacher differs keep one of their own.
    """

    def __init__(self, classifiers: Sequence[Classifier]) -> None:
        self._classifiers, self._place = list(classifiers), classifiers[0].place
        self._groups: list[list[int]] = []
        for number, classifier in enumerate(classifiers):
            group = next((g for g in self._groups if classifier.adopt(classifiers[g[0]])), None)
            if group is None:
                self._groups.append([number])
            else:
                group.append(number)
        self._runs = []
        for group in self._groups:
            taps = {str(tap): tap for number in group for tap in classifiers[number].taps.values()}
            self._runs.append(Tapped(classifiers[group[0]].network, taps))

    @torch.no_grad()
    def __call__(self, view: Float[Tensor, "batch channels height width"], due: Sequence[int]) -> dict[int, Outputs]:
        """Return the teacher's outputs for each student in `due`, with the features that the student reads."""
        found = {}
        for group, run in zip(self._groups, self._runs, strict=True):
            wanted = [number for number in group if number in due]
            if wanted:
                said = answer(run, self._place, view)
                for number in wanted:
                    taps = self._classifiers[number].taps
                    features = {name: said.features[str(tap)] for name, tap in taps.items()}
                    found[number] = Outputs(said.logits, features)
        return found


class Records:
    """The run folders of a cohort's students as one record; each student has its own metrics and checkpoint.

    If students learn from each other, all checkpoints are of one step. All are first written beside the old ones, and
    then published. If a command is killed in between, the next one publishes the rest.
    """

    def __init__(self, records: Sequence[Progress], mutual: bool) -> None:
        self._records, self._mutual = list(records), mutual

    def log(self, row: Mapping[str, Any]) -> None:
        """Append each student's metrics to its own file."""
        for number, record in enumerate(self._records, 1):
            own = {n.removeprefix(f"{number}."): v for n, v in row.items() if n.startswith(f"{number}.")}
            if own:
                record.log({"step": row["step"], **own, "images_per_second": row["images_per_second"]})

    def save(self, state: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
        """Replace the checkpoints of the students that have a state."""
        pairs = [(r, kept) for r, kept in zip(self._records, state["students"], strict=True) if kept is not None]
        for record, kept in pairs:
            (record.make_ready if self._mutual else record.save)(kept["state"], kept["progress"])
        if self._mutual:
            for record, _ in pairs:
                record.publish()

    def load(self) -> tuple[dict[str, Any], Checkpoint] | None:
        """Load the checkpoint of each student that has one. Raises: RequestError if one is damaged or missing."""
        if self._mutual:
            self._settle()
        found = [record.load() for record in self._records]
        progress = next((one[1] for one in found if one is not None), None)
        return None if progress is None else ({"students": found}, progress)

    def _settle(self) -> None:
        """Bring all checkpoints to one step, after a kill during publication."""
        steps = [record.step() for record in self._records]
        last = max((step for step in steps if step is not None), default=None)
        for record, step in zip(self._records, steps, strict=True):
            if step != last and record.step(READY) == last:
                record.publish()
            elif step != last:
                raise RequestError(
                    f"{record.folder} has a checkpoint of step {step or 0} and another student one of step {last}: "
                    "they learn from each other; delete the folders of all, and give the command again"
                )
        for record in self._records:
            record.forget_ready()
