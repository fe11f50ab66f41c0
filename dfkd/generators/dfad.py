"""DFAD: a generator of images on which the student's logits are furthest from the teacher's."""

import torch
from torch import Tensor

from dfkd.generators.base import Task
from dfkd.generators.generator import GeneratorMethod
from dfkd.generators.terms import logit_difference
from dfkd.system.limits import check_at_least
from dfkd.system.paper import Paper
from dfkd.training.sources import Student


class DFAD(GeneratorMethod):
    """A generator of images on which the student's logits are furthest from the teacher's.

        log=False:   -mean over images and classes of |t - s|
        log=True:    -log(1 + mean over images and classes of |t - s|)

    t and s are the logits [batch, classes] of teacher and student. The student in turn minimizes the difference. It
    takes `every` steps, each with fresh images, per generator step. There is no other term. The paper calls `log` the
    steadier choice, and the authors' code omits it for CIFAR. The student's own loss there is `logits:norm=l1`. The
    preset `dfad` has the authors' recipe.

    The authors' generator learns at 1e-3, with Adam's usual betas (0.9, 0.999), for 25,000 steps. In a run of a few
    hundred steps, this rate is too fast for the student. The images soon show one class, and are far from the teacher's
    statistics.
    """

    paper = Paper("Data-free adversarial distillation", 2019, "1912.11006")
    needs_student = True

    def __init__(
        self,
        task: Task,
        *,
        latent: int = 256,
        width: int = 64,
        lr: float = 2e-5,
        steps: int = 2000,
        every: int = 5,
        log: bool = False,
    ) -> None:
        """Build the generator network.

        `latent` is the width of the noise, `width` the channels of the last layers, and `lr` Adam's learning rate. The
        student takes `every` steps per generator step.
        """
        check_at_least(1, every=every)
        super().__init__(task, latent=latent, width=width, lr=lr, steps=steps, contrast=True)
        self.every, self._log = every, log

    def update(self, student: Student | None) -> dict[str, Tensor]:
        """Take one step of the generator."""
        assert student is not None
        images = self.make(self.task.batch)
        term = logit_difference(self.teach(images).logits, student(self.normalize(images)).logits)
        return self.learn({"logit_difference": -torch.log1p(-term) if self._log else term}, {"logit_difference": 1.0})
