"""ZSKT: a generator that looks for the images on which the student's prediction is furthest from the teacher's."""

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
    takes `every` steps to one of the generator. All are on that step's batch, made again by the updated generator. The
    student's own loss there is the same divergence and the attention of four stages. The preset `zskt` has it.

    The authors' code also averages the divergence over the classes. It clips both gradients to norm 5. Neither is in
    the paper's formulas. It has Adam's usual betas (0.9, 0.999) and a generator that ends in a BatchNorm. Its
    generator's rate falls along a cosine. Here, the rate of every generator is constant.
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
        """`latent` numbers of noise an image; Adam's `lr`; `every` so many steps of the student one of `steps`."""
        check_at_least(1, every=every)
        super().__init__(task, latent=latent, width=width, lr=lr, steps=steps, contrast=True)
        self.every = every
        self._held = nn.Module()
        self._held.register_buffer("images", self.draw(task.batch, self.random))

    def update(self, student: Student | None) -> dict[str, Tensor]:
        """One step of the generator, and the batch of the student's next steps."""
        assert student is not None
        latent = noise(self.task.batch, self.network.latent, self.random)
        images = render(self.network, latent, self.task)
        term = -divergence(self.teach(images).logits, student(self.normalize(images)).logits)
        learned = self.learn({"divergence": term}, {"divergence": 1.0})
        with torch.no_grad():
            self._held.images = render(self.network, latent, self.task)
        return learned

    def sample(self, count: int, random: torch.Generator) -> Float[Tensor, "count channels size size"]:
        """The first `count` images of the batch in hand; where it has not so many, new ones."""
        held: Tensor = self._held.images  # type: ignore[assignment]
        return held[:count] if count <= len(held) else self.draw(count, random)

    def parts(self) -> Mapping[str, Stateful]:
        """The network, its optimizer and the batch in hand."""
        return {**super().parts(), "held": self._held}
