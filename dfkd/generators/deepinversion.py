"""DeepInversion: pixels optimized until the teacher sees the wanted classes and its training statistics.

Adaptive DeepInversion also looks for images on which student and teacher disagree.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.generators.bank import BankMethod
from dfkd.generators.base import Stateful, Task, descend, total
from dfkd.generators.terms import between, one_hot
from dfkd.models.features.bn_statistics import require_statistics
from dfkd.system.limits import check_at_least
from dfkd.system.paper import Paper
from dfkd.system.torch_optim import Adam
from dfkd.training.sources import Student

TEMPERATURE = 3.0
"""Temperature of the predictions in the competition term."""


class Canvas(nn.Module):
    """The batch that is being optimized, as the teacher's input, and its wanted classes."""

    view: Tensor
    labels: Tensor

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.view = nn.Parameter(torch.zeros(task.batch, task.channels, task.size, task.size, device=task.device))
        self.register_buffer("labels", torch.zeros(task.batch, dtype=torch.int64, device=task.device))


class DeepInversion(BankMethod):
    """Pixels that are optimized until the teacher sees the wanted classes and its training statistics.

        one_hot * CE(t, y) + statistics * distance of BatchNorm statistics + variation * TV(x) + l2 * norm of x

    x are the pixels [batch, channels, size, size], t the teacher's logits and y randomly drawn classes. TV is the total
    variation. Every batch begins as normal noise. Adam makes `steps` updates of its pixels. Each update sees the images
    cyclically shifted by up to `jitter` pixels. The images of the last step go to the bank. The authors' code intends
    to keep the best images, but also keeps the last.

    `batches` batches are made before the student's first step, and then one batch every `every` student steps. In the
    paper all batches are made before. The authors' command for CIFAR has these weights, with batches of 256 and 2000
    steps at lr 0.05. That is twenty times the work of the defaults. Pixels are clamped to the range of an image. The
    authors' code does so for ImageNet, but not for CIFAR.
    """

    paper = Paper("Dreaming to distill: data-free knowledge transfer via DeepInversion", 2019, "1912.08795")
    needs_statistics = True

    def __init__(
        self,
        task: Task,
        *,
        steps: int = 100,
        lr: float = 0.1,
        batches: int = 6,
        every: int = 100,
        jitter: int = 2,
        one_hot: float = 1.0,
        statistics: float = 10.0,
        variation: float = 2.5e-5,
        l2: float = 0.0,
    ) -> None:
        """Prepare the batch of pixels and its optimizer.

        Raises: RequestError for a teacher without BatchNorm, or an option below its minimum.
        """
        check_at_least(1, steps=steps, batches=batches, every=every)
        check_at_least(jitter=jitter)
        super().__init__(task, per_batch=steps)
        self._statistics = require_statistics(task.teacher.model.module)
        self.every, self.turns, self.first = every, steps, batches * steps
        self._steps, self._jitter = steps, jitter
        self.canvas = Canvas(task)
        black = torch.zeros(1, task.channels, 1, 1, device=task.device)
        self._black, self._white = self.normalize(black), self.normalize(black + 1)
        self.optimizer = Adam([self.canvas.view], lr=lr)
        self.weights = {"one_hot": one_hot, "statistics": statistics, "variation": variation, "l2": l2}

    def update(self, student: Student | None) -> dict[str, Tensor]:
        """Take one step of a batch. The last step of the batch adds its images to the bank."""
        if self.updates % self._steps == 0:
            self._begin()
        terms = self.terms(self._jittered(), student)
        descend(self.optimizer, total(terms, self.weights))
        with torch.no_grad():
            self.canvas.view.clamp_(self._black, self._white)
        self.updates += 1
        if self.updates % self._steps == 0:
            self.keep(self._images(self.canvas.view), self.canvas.labels)
        return {name: term.detach() for name, term in terms.items()}

    def terms(self, view: Float[Tensor, "batch channels size size"], student: Student | None) -> dict[str, Tensor]:
        """Return the loss terms of a batch, given as the teacher's input."""
        return self._terms(view)[0]

    def parts(self) -> Mapping[str, Stateful]:
        """Return the bank, the batch in progress and its optimizer."""
        return {**super().parts(), "canvas": self.canvas, "optimizer": self.optimizer}

    def _terms(
        self, view: Float[Tensor, "batch channels size size"]
    ) -> tuple[dict[str, Tensor], Float[Tensor, "batch classes"]]:
        """Return the terms without a student, and the teacher's logits."""
        with self._statistics.watched():
            logits = self.teach(self._images(view)).logits
        distance = torch.stack(self._statistics.distances()).sum()
        terms = {"one_hot": one_hot(logits, self.canvas.labels), "statistics": distance}
        return terms | {"variation": total_variation(view), "l2": torch.linalg.vector_norm(view)}, logits

    @torch.no_grad()
    def _begin(self) -> None:
        """Start a batch from noise, with new classes and an empty optimizer state."""
        shape, random = self.canvas.view.shape, self.random
        self.canvas.view.copy_(torch.randn(shape, generator=random, device=random.device))
        self.canvas.view.clamp_(self._black, self._white)
        self.canvas.labels.copy_(self.labels(len(self.canvas.labels)))
        self.optimizer.state.clear()

    def _jittered(self) -> Float[Tensor, "batch channels size size"]:
        """Shift the whole batch by one random offset.

        A gather does this without reading the offset on the CPU, which would wait for the device.
        """
        side, reach = self.task.size, self._jitter
        shift = torch.randint(-reach, reach + 1, (2, 1), generator=self.random, device=self.task.device)
        rows, columns = (torch.arange(side, device=self.task.device) + shift) % side
        return self.canvas.view[:, :, rows[:, None], columns]

    def _images(self, view: Float[Tensor, "batch channels size size"]) -> Float[Tensor, "batch channels size size"]:
        return (view - self._black) / (self._white - self._black)


class AdaptiveDeepInversion(DeepInversion):
    """DeepInversion that also looks for images on which student and teacher disagree.

        loss of deepinversion + competition * (1 - JS(p_t, p_s))

    p_t and p_s are the predictions [batch, classes] of teacher and student at temperature 3. JS is their Jensen-Shannon
    divergence, which is large where they disagree.

    The authors' code exchanges the two arguments of its divergences. It also clamps all probabilities to [0.01, 0.99],
    which removes the gradient of classes below 0.01. Here the divergence is neither exchanged nor clamped. The authors'
    weights of the term are 10 for CIFAR and 0.2 for ImageNet. Here the student runs in training mode, in the authors'
    code in evaluation mode.
    """

    paper = Paper("Dreaming to distill: data-free knowledge transfer via DeepInversion", 2019, "1912.08795")
    needs_student = True

    def __init__(
        self,
        task: Task,
        *,
        steps: int = 100,
        lr: float = 0.1,
        batches: int = 6,
        every: int = 100,
        jitter: int = 2,
        one_hot: float = 1.0,
        statistics: float = 10.0,
        variation: float = 2.5e-5,
        l2: float = 0.0,
        competition: float = 10.0,
    ) -> None:
        """Prepare the batch of pixels and its optimizer. Raises: as `DeepInversion`."""
        super().__init__(
            task,
            steps=steps,
            lr=lr,
            batches=batches,
            every=every,
            jitter=jitter,
            one_hot=one_hot,
            statistics=statistics,
            variation=variation,
            l2=l2,
        )
        self.weights["competition"] = competition

    def terms(self, view: Float[Tensor, "batch channels size size"], student: Student | None) -> dict[str, Tensor]:
        """Return the terms of `DeepInversion`, and the competition with the student on the same view."""
        assert student is not None
        terms, logits = self._terms(view)
        return {**terms, "competition": competition(logits, student(view).logits)}


def total_variation(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, ""]:
    """Return the total variation of a batch, summed over four directions: horizontal, vertical and both diagonals.

    For each direction, it is the root of the summed squared differences of neighbouring pixels, over the whole batch.
    It grows with the square root of the batch size.
    """
    right, down = images.diff(dim=3), images.diff(dim=2)
    falling = images[:, :, 1:, 1:] - images[:, :, :-1, :-1]
    rising = images[:, :, 1:, :-1] - images[:, :, :-1, 1:]
    # at 0 a vector norm has gradient 0, whereas that of a square root is not finite
    return torch.stack([torch.linalg.vector_norm(gap) for gap in (right, down, falling, rising)]).sum()


def competition(teacher: Float[Tensor, "batch classes"], student: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Return 1 minus the Jensen-Shannon divergence of the predictions at temperature 3, in nats, averaged over images.

    The minimum, 1 - ln 2, is reached where the two predictions have no class in common. Gradients reach both inputs.
    """
    log_p, log_q = (logits.div(TEMPERATURE).log_softmax(dim=1) for logits in (teacher, student))
    log_mean = torch.logaddexp(log_p, log_q) - math.log(2)
    return 1 - (between(log_p, log_mean) + between(log_q, log_mean)).mean() / 2
