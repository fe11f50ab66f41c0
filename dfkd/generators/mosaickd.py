"""MosaicKD: a generator of images of the teacher's classes, composed of patches of other images."""

import math
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from dfkd.generators.base import Stateful, Task, descend
from dfkd.generators.generator import BETAS, SLOPE, GeneratorMethod
from dfkd.generators.terms import class_entropy, divergence
from dfkd.system.limits import check_at_least
from dfkd.system.paper import Paper
from dfkd.system.torch_optim import Adam
from dfkd.training.sources import Student


class PatchDiscriminator(nn.Sequential):
    """Discriminator from the teacher's input [batch, channels, size, size] to one logit per patch.

    The logit is above 0 for real patches, below 0 for made ones. Two convolutions of stride 2 give each logit a
    receptive field of 10x10 pixels. So it judges the patch, not the whole image. BatchNorm always uses the batch's
    statistics.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(channels, 2 * width, 4, stride=2, padding=1),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(4 * width, track_running_stats=False),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv2d(4 * width, 1, 1, bias=False),
        )


class MosaicKD(GeneratorMethod):
    """A generator of images of the teacher's classes, composed of patches of other images.

        local * patch term + align * H(t) - adv * KL(t || s) - balance * H(mean of t)

    t and s are the predictions [batch, classes] of teacher and student. H is the entropy; that of the batch's mean
    prediction is in bits. The patch term is low where the discriminator takes patches of made images for real ones.
    Each update first trains the discriminator to tell made from real patches. Then the generator takes one step on the
    same images.

    Patch terms are summed over patches and averaged over images, as in the authors' code. So their gradient grows with
    the number of patches, which is 64 for 32 pixels. The student learns from made and real images, half and half unless
    `--weights` is given. It takes `every` steps per generator step.

    These defaults are the authors' CIFAR recipe. Their generator is twice as wide at its start.
    """

    paper = Paper("Mosaicking to distill: knowledge distillation from out-of-domain data", 2021, "2110.15094")
    needs_student = True
    needs_real = True

    def __init__(
        self,
        task: Task,
        *,
        latent: int = 100,
        width: int = 64,
        lr: float = 1e-3,
        steps: int = 2000,
        every: int = 5,
        local: float = 1.0,
        align: float = 1.0,
        adv: float = 1.0,
        balance: float = 10.0,
    ) -> None:
        """Build the generator and the discriminator.

        `latent` is the width of the noise, `width` the channels of the last layers, and `lr` Adam's learning rate for
        both networks. `local`, `align`, `adv` and `balance` are the weights of the terms.
        """
        check_at_least(1, every=every)
        super().__init__(task, latent=latent, width=width, lr=lr, steps=steps)
        self.every = every
        bits = math.log2(max(task.classes, 2))  # class_entropy is divided by log(classes)
        self.weights = {"local": local, "align": align, "divergence": adv, "class_entropy": balance * bits}
        self.critic = PatchDiscriminator(task.channels, width).to(task.device)
        self.critic_optimizer = Adam(self.critic.parameters(), lr=lr, betas=BETAS)

    def update(self, student: Student | None) -> dict[str, Tensor]:
        """Take one step of the discriminator and one of the generator."""
        assert student is not None
        images = self.make(self.task.batch)
        view, real = self.normalize(images), self.normalize(self.real(self.task.batch))
        separation = (patches(self.critic(view.detach()), real=False) + patches(self.critic(real), real=True)) / 2
        descend(self.critic_optimizer, self.weights["local"] * separation)
        logits = self.teach(images).logits
        terms = {
            "local": patches(self.critic(view), real=True),
            "align": entropy(logits),
            "divergence": -divergence(logits, student(view).logits),
            "class_entropy": class_entropy(logits),
        }
        return {**self.learn(terms, self.weights), "discriminator": separation.detach()}

    def parts(self) -> Mapping[str, Stateful]:
        """Return both networks and their optimizers."""
        return {**super().parts(), "critic": self.critic, "critic_optimizer": self.critic_optimizer}


def patches(logits: Float[Tensor, "batch 1 height width"], *, real: bool) -> Float[Tensor, ""]:
    """Return the discriminator's cross-entropy with the target `real` or made.

    It is summed over patches and averaged over images.
    """
    return softplus(-logits if real else logits).flatten(1).sum(dim=1).mean()


def entropy(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Return the entropy of the predictions in nats, averaged over images. It is low where the teacher is confident."""
    log_p = logits.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1).mean()
