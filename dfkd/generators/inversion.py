"""Batches of images that a generator and its input are fitted to, and what the methods share that make them so."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dfkd.data.images.augment import crop_and_flip
from dfkd.generators.bank import BankMethod
from dfkd.generators.base import Stateful, Task, descend, total
from dfkd.generators.generator import noise, render
from dfkd.generators.terms import adversarial, one_hot
from dfkd.models.features.bn_statistics import MovingStatistics, require_statistics
from dfkd.models.features.outputs import Outputs
from dfkd.system.limits import Range, check_at_least
from dfkd.training.sources import Student

BETAS = (0.5, 0.999)
"""Of Adam, in the authors' code of all these methods."""


@dataclass(frozen=True)
class Recipe:
    """How the batches are made, and the weights of the terms that the methods share."""

    steps: int
    """Steps of a batch."""
    every: int
    """Steps of the student from one batch to the next."""
    warmup: int
    """Batches before the student's first step."""
    flip: bool
    """Whether views are mirrored with chance 1/2."""
    one_hot: float
    statistics: float
    adversarial: float
    momentum: float = 0.0
    """Share of the batches before in the statistics."""


class Underway(nn.Module):
    """The batch that is being made: the generator's input, the classes, and its best images so far."""

    labels: Tensor
    images: Tensor
    loss: Tensor

    def __init__(self, task: Task, latent: int) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(task.batch, latent))
        self.register_buffer("labels", torch.zeros(task.batch, dtype=torch.int64))
        self.register_buffer("images", torch.zeros(task.batch, task.channels, task.size, task.size))
        self.register_buffer("loss", torch.zeros(()))
        self.to(task.device)

    @torch.no_grad()
    def begin(self, labels: Int[Tensor, " batch"], latent: Float[Tensor, "batch latent"]) -> None:
        """Another batch."""
        self.labels.copy_(labels)
        self.latent.copy_(latent)
        self.loss.fill_(torch.inf)

    @torch.no_grad()
    def offer(self, images: Float[Tensor, "batch channels size size"], loss: Float[Tensor, ""]) -> None:
        """Keep the images whose loss is lowest; nothing waits for the device."""
        better = loss < self.loss
        torch.where(better, images, self.images, out=self.images)
        torch.where(better, loss, self.loss, out=self.loss)


class InversionMethod(BankMethod):
    """A batch is made in `steps` updates: Adam fits a network's weights, and where it learns, its input to the teacher.

    The loss is one-hot on the classes of the batch + statistics + adversarial, on views of the images that are cropped
    and mirrored at random; of all steps the images with the lowest loss go to the bank, before such a view of them. The
    adversarial term begins with the student: it is left out for the `warmup` batches, and where there is no student.
    The student answers as in training, by the batch's statistics; the authors' code has it in evaluation mode.

    Subclasses give the network, say in `renew` how it starts a batch, and may add terms, and learn from a batch.
    """

    uses_student = True
    needs_statistics = True

    def __init__(self, task: Task, recipe: Recipe, network: nn.Module, latent: int) -> None:
        """`latent`: the width of the network's input. Raises: RequestError for a teacher without BatchNorm."""
        check_at_least(1, steps=recipe.steps, every=recipe.every, warmup=recipe.warmup, latent=latent)
        Range(least=0, below=1).check(momentum=recipe.momentum)
        check_at_least(one_hot=recipe.one_hot, statistics=recipe.statistics, adversarial=recipe.adversarial)
        super().__init__(task, per_batch=recipe.steps)
        self.recipe, self.network = recipe, network
        self.every, self.turns, self.first = recipe.every, recipe.steps, recipe.warmup * recipe.steps
        self.statistics = require_statistics(task.teacher.model.module)
        self.moving = MovingStatistics(self.statistics, recipe.momentum)
        self.underway = Underway(task, latent)
        self.optimizer = self.fresh_optimizer()
        self.weights = {
            "one_hot": recipe.one_hot,
            "statistics": recipe.statistics,
            "adversarial": recipe.adversarial,
        }

    @abstractmethod
    def renew(self) -> None:
        """Make the network ready for the batch that begins."""

    @abstractmethod
    def fresh_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of a batch."""

    def input(self, labels: Int[Tensor, " batch"]) -> Float[Tensor, "batch latent"]:
        """What the network makes the batch from, at its start."""
        return noise(self.task.batch, self.underway.latent.shape[1], self.random)

    def more_terms(self, images: Float[Tensor, "batch channels size size"], answer: Outputs) -> dict[str, Tensor]:
        """Terms of the method's own, with weights in `weights`; `answer` is the teacher's to a view of the images."""
        return {}

    def step(self, loss: Float[Tensor, ""]) -> None:
        """Learn from the loss of an update."""
        descend(self.optimizer, loss)

    def finish(self) -> None:
        """Learn from the batch that is complete."""

    @property
    def batches(self) -> int:
        """Complete ones."""
        return self.updates // self.recipe.steps

    def update(self, student: Student | None) -> dict[str, Tensor]:
        """One step of a batch; its last one puts it into the bank."""
        if self.updates % self.recipe.steps == 0:
            labels = self.labels(self.task.batch)
            self.underway.begin(labels, self.input(labels))
            self.renew()
            self.optimizer = self.fresh_optimizer()
        images = render(self.network, self.underway.latent, self.task)
        terms = self._terms(images, student)
        loss = total(terms, self.weights)
        self.underway.offer(images, loss)
        self.step(loss)
        self.updates += 1
        if self.updates % self.recipe.steps == 0:
            self.moving.move()
            self.finish()
            # a loss that was never finite left the images of the batch before
            self.keep(torch.where(self.underway.loss.isfinite(), self.underway.images, torch.nan), self.underway.labels)
        return {name: term.detach() for name, term in terms.items()}

    def augmented(self, images: Float[Tensor, "batch channels size size"]) -> Float[Tensor, "batch channels size size"]:
        """Random views of images in [0, 1]: shifted by up to an eighth of the side, mirrored; black comes in."""
        rows = images.permute(0, 2, 3, 1)
        return crop_and_flip(rows, self.task.size // 8, self.recipe.flip, self.random).permute(0, 3, 1, 2)

    def parts(self) -> Mapping[str, Stateful]:
        """The bank, the batch that is being made, and what makes it."""
        making: dict[str, Stateful] = {"underway": self.underway, "network": self.network, "optimizer": self.optimizer}
        return {**super().parts(), **making, "moving": self.moving}

    def _terms(self, images: Float[Tensor, "batch channels size size"], student: Student | None) -> dict[str, Tensor]:
        view = self.augmented(images)
        with self.statistics.watched():
            answer = self.teach(view)
        terms = {
            "one_hot": one_hot(answer.logits, self.underway.labels),
            "statistics": torch.stack(self.moving.distances()).sum(),
        }
        if student is not None and self.recipe.adversarial and self.batches >= self.recipe.warmup:
            terms["adversarial"] = adversarial(answer.logits, student(self.normalize(view)).logits)
        return terms | self.more_terms(images, answer)
