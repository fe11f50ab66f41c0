"""FastDFKD: a generator that is meta-learned, so that a few steps fit it to a batch of images."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from dfkd.generators.base import Stateful, Task
from dfkd.generators.generator import BETAS, build_generator
from dfkd.generators.inversion import InversionMethod, Recipe
from dfkd.system.paper import Paper
from dfkd.system.torch_optim import Adam


class FastDFKD(InversionMethod):
    """A generator that is meta-learned, so that a few steps fit it to a batch of images.

        one_hot * CE(t, y) + statistics * distance of BatchNorm statistics + adversarial * adversarial term

    t are the teacher's logits [batch, classes] and y randomly drawn classes. A batch begins with a copy of the common
    generator and fresh noise. `steps` updates of Adam fit both. The common generator then takes one step of Adam along
    the sum of the copy's gradients, at the rate `steps` * `lr`. This is first-order meta-learning: the common generator
    learns what all batches have in common. The statistics are a moving average: the batch has the weight 1 -
    `momentum`, earlier batches the rest.

    The defaults are Fast-10 of the authors' code. It makes a batch of 256 every 400 student steps, for 80,000 steps.
    `every` is for short runs. For fewer steps its rates (lr, latent_lr) are (0.003, 0.01) with 5 steps and (0.005,
    0.015) with 2. Its weights of one_hot and adversarial are 0.4 and 1.1 for wide residual networks. Two things are
    omitted here. The authors' code re-initializes the generator's linear layer and the BatchNorm after it once, 120
    batches after the warm-up. It also has another meta-learner (Reptile).
    """

    paper = Paper("Up to 100x faster data-free knowledge distillation", 2021, "2112.06253")

    def __init__(
        self,
        task: Task,
        *,
        steps: int = 10,
        every: int = 10,
        warmup: int = 20,
        lr: float = 2e-3,
        latent_lr: float = 0.01,
        one_hot: float = 0.5,
        statistics: float = 10.0,
        adversarial: float = 1.33,
        momentum: float = 0.9,
        latent: int = 256,
        width: int = 64,
        flip: bool = True,
    ) -> None:
        """Build the common generator and a copy of it.

        A batch takes `steps` updates and is made every `every` student steps. `warmup` batches are made before the
        student's first step. `lr` and `latent_lr` are Adam's learning rates for the generator and its input. `one_hot`,
        `statistics` and `adversarial` are the weights of the terms. `latent` is the width of the noise. Raises:
        RequestError for a teacher without BatchNorm.
        """
        recipe = Recipe(steps, every, warmup, flip, one_hot, statistics, adversarial, momentum)
        self._rates = (lr, latent_lr)
        self.common = build_generator(task, latent, width)
        super().__init__(task, recipe, copy.deepcopy(self.common), latent)
        self.gradients = copy.deepcopy(self.common)  # holds the summed gradients, one tensor per parameter
        self.common_optimizer = Adam(self.common.parameters(), lr=steps * lr, betas=BETAS)

    def renew(self) -> None:
        """Copy the common generator and clear the summed gradients."""
        self.network.load_state_dict(self.common.state_dict())
        for summed in self.gradients.parameters():
            summed.detach().zero_()

    def fresh_optimizer(self) -> torch.optim.Optimizer:
        """Return a new optimizer of the copy and its input."""
        lr, latent_lr = self._rates
        own = {"params": [*self.network.parameters()], "lr": lr}
        return Adam([own, {"params": [self.underway.latent], "lr": latent_lr}], betas=BETAS)

    def step(self, loss: Tensor) -> None:
        """Take one step of the copy, and add its gradients to the sum."""
        super().step(loss)
        for summed, parameter in zip(self.gradients.parameters(), self.network.parameters(), strict=True):
            summed.detach().add_(parameter.grad)  # type: ignore[arg-type]

    def finish(self) -> None:
        """Take one step of the common generator along the summed gradients."""
        for parameter, summed in zip(self.common.parameters(), self.gradients.parameters(), strict=True):
            parameter.grad = summed.detach()
        self.common_optimizer.step()
        self.common_optimizer.zero_grad(set_to_none=True)

    def parts(self) -> Mapping[str, Stateful]:
        """Return the parts of an inversion method, the common generator, its optimizer and the summed gradients."""
        own: dict[str, Stateful] = {"common": self.common, "gradients": self.gradients}
        return {**super().parts(), **own, "common_optimizer": self.common_optimizer}
