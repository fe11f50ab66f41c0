"""Base class of methods that fit a generator and its input to one batch of images at a time."""

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


@dataclass(frozen=True)
class Recipe:
    """Number and length of the batches, and the weights of the terms that the methods share."""

    steps: int
    """Updates per batch."""
    every: int
    """Student steps from one batch to the next."""
    warmup: int
    """Batches before the student's first step."""
    flip: bool
    """Whether views are mirrored with probability 1/2."""
    one_hot: float
    statistics: float
    adversarial: float
    momentum: float = 0.0
    """Weight of earlier batches in the BatchNorm statistics."""


class Underway(nn.Module):
    """The batch in progress: the generator's input, the wanted classes, and the best images so far."""

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
        """Start a batch."""
        self.labels.copy_(labels)
        self.latent.copy_(latent)
        self.loss.fill_(torch.inf)

    @torch.no_grad()
    def offer(self, images: Float[Tensor, "batch channels size size"], loss: Float[Tensor, ""]) -> None:
        """Keep the images if their loss is the lowest so far. This does not wait for the device."""
        better = loss < self.loss
        torch.where(better, images, self.images, out=self.images)
        torch.where(better, loss, self.loss, out=self.loss)


class InversionMethod(BankMethod):
    """Method that makes a batch in `steps` updates: Adam fits a network, and in some methods its input, to the teacher.

    The loss is one_hot + statistics + adversarial, on views of the images that are cropped and mirrored at random. Its
    first term is the cross-entropy with the classes of the batch. The images of the step with the lowest loss go to the
    bank, without augmentation. The adversarial term begins with the student: the `warmup` batches and trainings without
    a student omit it. The student runs in training mode, with the batch's statistics. In the authors' code it runs in
    evaluation mode.

    Subclasses supply the network and define in `renew` how it starts a batch. They may add terms, and learn from a
    finished batch.
    """

    uses_student = True
    needs_statistics = True

    def __init__(self, task: Task, recipe: Recipe, network: nn.Module, latent: int) -> None:
        """Prepare the batch in progress. `latent` is the width of the network's input.

        Raises: RequestError for a teacher without BatchNorm, or a number of the recipe out of its range.
        """
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
        """Prepare the network for a new batch."""

    @abstractmethod
    def fresh_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of a new batch."""

    def input(self, labels: Int[Tensor, " batch"]) -> Float[Tensor, "batch latent"]:
        """Return the network's input at the start of a batch."""
        return noise(self.task.batch, self.underway.latent.shape[1], self.random)

    def more_terms(self, images: Float[Tensor, "batch channels size size"], answer: Outputs) -> dict[str, Tensor]:
        """Return terms of the subclass, whose weights are in `weights`.

        `answer` is the teacher's output for a view of the images.
        """
        return {}

    def step(self, loss: Float[Tensor, ""]) -> None:
        """Take one optimizer step on the loss of an update."""
        descend(self.optimizer, loss)

    def finish(self) -> None:
        """Learn from a complete batch."""

    @property
    def batches(self) -> int:
        """Number of complete batches."""
        return self.updates // self.recipe.steps

    def update(self, student: Student | None) -> dict[str, Tensor]:
        """Take one step of a batch. The last step of the batch adds its best images to the bank."""
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
            # if no loss of this batch was finite, the buffer still holds the images of an earlier batch
            self.keep(torch.where(self.underway.loss.isfinite(), self.underway.images, torch.nan), self.underway.labels)
        return {name: term.detach() for name, term in terms.items()}

    def augmented(self, images: Float[Tensor, "batch channels size size"]) -> Float[Tensor, "batch channels size size"]:
        """Return images in [0, 1] shifted at random by up to an eighth of the side, filled with black, and mirrored."""
        rows = images.permute(0, 2, 3, 1)
        return crop_and_flip(rows, self.task.size // 8, self.recipe.flip, self.random).permute(0, 3, 1, 2)

    def parts(self) -> Mapping[str, Stateful]:
        """Return the bank, the batch in progress, the network, its optimizer and the moving statistics."""
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
