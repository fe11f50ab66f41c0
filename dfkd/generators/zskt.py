"""ZSKT: a generator of images on which the student's prediction is furthest from the teacher's."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.generators.base import Stateful, Task
from dfkd.generators.generator import GeneratorMethod, noise, render
from dfkd.generators.terms import divergence
from dfkd.system.limits import check_at_least
from dfkd.system.paper import Paper
from dfkd.training.sources import Student


class ZSKT(GeneratorMethod):
    """A generator of images on which the student's prediction is furthest from the teacher's.

        -KL(softmax(t) || softmax(s))

    t and s are the logits [batch, classes] of teacher and student. The student in turn minimizes the divergence. It
    takes `every` steps per generator step. All of these steps use the batch of the generator step, rendered again by
    the updated generator. The paper's loss for the student adds the attention of some layers. The authors' code takes
    the three stages of wide residual networks. The preset `zskt` takes all stages of any network.

    The authors' code also averages the divergence over the classes. It clips both gradients to norm 5. Neither is in
    the paper's formulas. It has Adam's usual betas (0.9, 0.999) and a generator that ends in a BatchNorm. The learning
    rate of its generator falls along a cosine. Here, the learning rate of every generator is constant.
    """

    paper = Paper("Zero-shot knowledge transfer via adversarial belief matching", 2019, "1905.09768")
    needs_student = True

    def __init__(
        self,
        task: Task,
        *,
        latent: int = 100,
        width: int = 64,
        lr: float = 1e-3,
        steps: int = 2000,
        every: int = 10,
    ) -> None:
        """Build the generator network.

        `latent` is the width of the noise, `width` the channels of the last layers, and `lr` Adam's learning rate. The
        student takes `every` steps per generator step.
        """
        check_at_least(1, every=every)
        super().__init__(task, latent=latent, width=width, lr=lr, steps=steps, contrast=True)
        self.every = every
        self._held = nn.Module()
        self._held.register_buffer("images", self.draw(task.batch, self.random))

    def update(self, student: Student | None) -> dict[str, Tensor]:
        """Take one step of the generator, and render the batch of the student's next steps."""
        assert student is not None
        latent = noise(self.task.batch, self.network.latent, self.random)
        images = render(self.network, latent, self.task)
        term = -divergence(self.teach(images).logits, student(self.normalize(images)).logits)
        learned = self.learn({"divergence": term}, {"divergence": 1.0})
        with torch.no_grad():
            self._held.images = render(self.network, latent, self.task)
        return learned

    def sample(self, count: int, random: torch.Generator) -> Float[Tensor, "count channels size size"]:
        """Return the first `count` images of the current batch, or draw new ones if the batch has fewer."""
        held: Tensor = self._held.images  # type: ignore[assignment]
        return held[:count] if count <= len(held) else self.draw(count, random)

    def parts(self) -> Mapping[str, Stateful]:
        """Return the network, its optimizer and the current batch."""
        return {**super().parts(), "held": self._held}
