"""CMI: batches of images that differ from each other and from earlier batches."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from dfkd.data.images.augment import enlarge
from dfkd.generators.base import Stateful, Task, descend
from dfkd.generators.generator import BETAS, build_generator
from dfkd.generators.inversion import InversionMethod, Recipe
from dfkd.models.features.outputs import Outputs
from dfkd.models.features.taps import in_group
from dfkd.system.limits import check_above, check_at_least
from dfkd.system.paper import Paper
from dfkd.system.torch_optim import Adam

LEAST_AREA = 0.25
"""Smallest area of a local view, as a share of the image."""


class CMI(InversionMethod):
    """Batches of images that differ from each other and from earlier batches.

        one_hot * CE(t, y) + statistics * distance of BatchNorm statistics
            + adversarial * adversarial term + contrast * contrastive term

    t are the teacher's logits [batch, classes] and y randomly drawn classes. Every batch begins with a newly
    initialized generator and fresh noise. `steps` updates of Adam fit the weights and the noise.

    The features of a view are the teacher's feature maps at the ends of its stages, averaged over positions and
    concatenated. A small network, trained along with the generator, projects the features to unit vectors. For each
    image, the contrastive term compares a close-up with whole views. It asks which of these shows the same image. The
    whole views are those of the batch and of `negatives` earlier images. The features of at most `memory` earlier
    images are kept.

    The authors' code takes 200 steps at the learning rate 0.001 for a batch of 256. It makes one batch every 2,000
    student steps, after 50,000 images that are made without the student. The defaults make fewer and shorter batches,
    for short runs. The authors' code remembers the features of the views at an image's best step. This implementation
    computes them on new views of the image that is kept. The authors' code takes features at all BatchNorm layers, for
    ResNet-34 at its stages.
    """

    paper = Paper("Contrastive model inversion for data-free knowledge distillation", 2021, "2105.08584")
    taps = frozenset({"stage"})

    def __init__(
        self,
        task: Task,
        *,
        steps: int = 60,
        every: int = 100,
        warmup: int = 4,
        lr: float = 2e-3,
        one_hot: float = 0.5,
        statistics: float = 1.0,
        adversarial: float = 0.5,
        contrast: float = 0.8,
        temperature: float = 0.1,
        negatives: int = 4096,
        memory: int = 40_960,
        projected: int = 256,
        latent: int = 256,
        width: int = 64,
        flip: bool = True,
    ) -> None:
        """Build the generator, the projection and the memory of features.

        A batch takes `steps` updates and is made every `every` student steps. `warmup` batches are made before the
        student's first step. `lr` is Adam's learning rate. `one_hot`, `statistics`, `adversarial` and `contrast` are
        the weights of the terms. `projected` is the width of a projected view and `latent` the width of the noise.
        Raises: RequestError for a teacher without BatchNorm.
        """
        check_at_least(contrast=contrast, negatives=negatives)
        check_at_least(1, memory=memory, projected=projected)
        check_above(temperature=temperature)
        self._rate, self._temperature, self._negatives = lr, temperature, negatives
        network = build_generator(task, latent, width)
        example = torch.zeros(1, task.channels, task.size, task.size, device=task.device)
        own = averaged(task.teacher.outputs(example)).shape[1]
        self.head = nn.Sequential(nn.Linear(own, own), nn.ReLU(), nn.Linear(own, projected)).to(task.device)
        self.head_optimizer = Adam(self.head.parameters(), lr=lr)
        self.memory = Memory(own, memory, task.device)
        super().__init__(task, Recipe(steps, every, warmup, flip, one_hot, statistics, adversarial), network, latent)
        self.weights["contrast"] = contrast

    def renew(self) -> None:
        """Initialize the generator's weights again."""
        redraw(self.network, self.random)

    def fresh_optimizer(self) -> torch.optim.Optimizer:
        """Return a new optimizer of the generator's weights and input."""
        return Adam([*self.network.parameters(), self.underway.latent], lr=self._rate, betas=BETAS)

    def more_terms(self, images: Float[Tensor, "batch channels size size"], answer: Outputs) -> dict[str, Tensor]:
        """Return the contrastive term. `answer` is the teacher's output for the whole views."""
        close, whole = averaged(self.teach(self.close_up(images))), averaged(answer)
        before = self.memory.draw(self._negatives, self.random)
        anchors, keys = torch.cat([close, before[:, 0]]), torch.cat([whole, before[:, 1]])
        with torch.no_grad():
            keys = normalize(self.head(keys), dim=1)
        return {"contrast": contrast(normalize(self.head(anchors), dim=1), keys, len(images), self._temperature)}

    def step(self, loss: Float[Tensor, ""]) -> None:
        """Take one step of the generator, its input and the projection."""
        descend(self.optimizer, loss, self.head_optimizer)

    @torch.no_grad()
    def finish(self) -> None:
        """Add the features of the kept images to the memory."""
        kept = self.underway.images
        self.memory.add(averaged(self.teach(self.close_up(kept))), averaged(self.teach(self.augmented(kept))))

    def close_up(self, images: Float[Tensor, "batch channels size size"]) -> Float[Tensor, "batch channels size size"]:
        """Return local views: a random part of each image, at least a quarter of its area, resized to the full size.

        With `flip`, each view is mirrored with probability 1/2.
        """
        view = enlarge(images, LEAST_AREA, self.random)
        if not self.recipe.flip:
            return view
        mirrored = torch.rand(len(view), 1, 1, 1, generator=self.random, device=view.device) < 0.5
        return torch.where(mirrored, view.flip(3), view)

    def parts(self) -> Mapping[str, Stateful]:
        """Return the parts of an inversion method, the projection, its optimizer and the memory."""
        own: dict[str, Stateful] = {"head": self.head, "head_optimizer": self.head_optimizer, "memory": self.memory}
        return {**super().parts(), **own}


class Memory:
    """Features of the close-up and the whole view of earlier images. The oldest images are dropped first."""

    def __init__(self, width: int, capacity: int, device: torch.device) -> None:
        self.rows: Float[Tensor, "images 2 width"] = torch.empty(0, 2, width, device=device)
        self._capacity = capacity

    def add(self, close: Float[Tensor, "batch width"], whole: Float[Tensor, "batch width"]) -> None:
        """Add the features of a batch."""
        self.rows = torch.cat([self.rows, torch.stack([close, whole], dim=1)])[-self._capacity :]

    def draw(self, count: int, random: torch.Generator) -> Float[Tensor, "drawn 2 width"]:
        """Draw the features of `count` different images, or of all if there are fewer."""
        chosen: Int[Tensor, " drawn"] = torch.randperm(len(self.rows), generator=random, device=random.device)[:count]
        return self.rows[chosen]

    def state_dict(self) -> dict[str, Tensor]:
        """Return all features."""
        return {"rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the features from `state_dict`."""
        self.rows = state["rows"].to(self.rows.device)


def averaged(answer: Outputs) -> Float[Tensor, "batch width"]:
    """Return the features at the ends of all stages, averaged over positions and concatenated."""
    stages = in_group(answer.features, "stage")
    return torch.cat([answer.features[name].float().mean(dim=(2, 3)) for name in stages], dim=1)


def contrast(
    anchors: Float[Tensor, "rows width"], keys: Float[Tensor, "rows width"], new: int, temperature: float
) -> Float[Tensor, ""]:
    """Return the contrastive loss: cross-entropy of the key of each anchor among all keys, by similarity / temperature.

    Anchors and keys are unit vectors. The `new` images of the batch come first. The loss is their mean plus the mean
    over the earlier images. So the size of the memory does not dilute the gradient of the batch.
    """
    logits = anchors @ keys.T / temperature
    loss = cross_entropy(logits, torch.arange(len(keys), device=keys.device), reduction="none")
    return loss[:new].mean() + (loss[new:].mean() if len(loss) > new else 0)


@torch.no_grad()
def redraw(network: nn.Module, random: torch.Generator) -> None:
    """Draw new weights as DCGAN does (https://arxiv.org/abs/1511.06434).

    Weights are normal with deviation 0.02, BatchNorm scales normal around 1 with deviation 0.02, biases 0.
    """
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.weight.normal_(0, 0.02, generator=random)
            if layer.bias is not None:
                layer.bias.zero_()
        elif isinstance(layer, nn.BatchNorm2d):
            layer.weight.normal_(1, 0.02, generator=random)
            layer.bias.zero_()
