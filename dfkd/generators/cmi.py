"""CMI: batches of images that can be told from each other, and from the batches before."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from dfkd.data.images.augment import enlarge
from dfkd.generators.base import Stateful, Task, descend
from dfkd.generators.generator import build_generator
from dfkd.generators.inversion import BETAS, InversionMethod, Recipe
from dfkd.models.features.outputs import Outputs
from dfkd.models.features.taps import in_group
from dfkd.system.limits import check_above, check_at_least
from dfkd.system.paper import Paper
from dfkd.system.torch_optim import Adam

LEAST_AREA = 0.25
"""Of a local view: its smallest share of the image."""


class CMI(InversionMethod):
    """Batches of images that differ from each other and from earlier batches.

        one_hot * CE(t, y) + statistics * distance of BatchNorm statistics
            + adversarial * adversarial term + contrast * contrastive term

    t are the teacher's logits [batch, classes] and y randomly drawn classes. Every batch begins with a newly drawn
    generator and fresh noise. `steps` of Adam fit both.

    A view's features are the teacher's at the ends of its stages, averaged over the positions and concatenated. A small
    network that trains along projects them to unit vectors. The contrastive term is `contrast` below. It identifies a
    close-up of an image among whole views: those of the batch's images and of `negatives` earlier ones. The features of
    at most `memory` earlier views are remembered.

    The paper takes 200 steps at the rate 0.001 for a batch of 256. It makes one every 2,000 steps of the student, after
    50,000 images that are made without the student. The defaults make fewer and shorter batches, for short runs. The
    authors' code remembers the features of the views of an image's best step. Here they are those of new views of the
    image that is kept. Its features are those at all BatchNorm layers, for ResNet-34 at its stages.
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
        """`steps` of a batch, `every` so many of the student, and `warmup` batches before its first; Adam's rate;
        weights of the terms; `projected` numbers of a projected view, `latent` of noise an image. Raises: RequestError
        for a teacher without BatchNorm.
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
        """Newly drawn weights."""
        redraw(self.network, self.random)

    def fresh_optimizer(self) -> torch.optim.Optimizer:
        """Of the generator and its input."""
        return Adam([*self.network.parameters(), self.underway.latent], lr=self._rate, betas=BETAS)

    def more_terms(self, images: Float[Tensor, "batch channels size size"], answer: Outputs) -> dict[str, Tensor]:
        """The contrast; `answer` is to the whole views."""
        close, whole = averaged(self.teach(self.close_up(images))), averaged(answer)
        before = self.memory.draw(self._negatives, self.random)
        anchors, keys = torch.cat([close, before[:, 0]]), torch.cat([whole, before[:, 1]])
        with torch.no_grad():
            keys = normalize(self.head(keys), dim=1)
        return {"contrast": contrast(normalize(self.head(anchors), dim=1), keys, len(images), self._temperature)}

    def step(self, loss: Float[Tensor, ""]) -> None:
        """The projection learns along."""
        descend(self.optimizer, loss, self.head_optimizer)

    @torch.no_grad()
    def finish(self) -> None:
        """Remember the images that are kept."""
        kept = self.underway.images
        self.memory.add(averaged(self.teach(self.close_up(kept))), averaged(self.teach(self.augmented(kept))))

    def close_up(self, images: Float[Tensor, "batch channels size size"]) -> Float[Tensor, "batch channels size size"]:
        """Local views: a random part of every image, a quarter of it at least, stretched to the whole size."""
        view = enlarge(images, LEAST_AREA, self.random)
        if not self.recipe.flip:
            return view
        mirrored = torch.rand(len(view), 1, 1, 1, generator=self.random, device=view.device) < 0.5
        return torch.where(mirrored, view.flip(3), view)

    def parts(self) -> Mapping[str, Stateful]:
        """The projection and what is remembered besides."""
        own: dict[str, Stateful] = {"head": self.head, "head_optimizer": self.head_optimizer, "memory": self.memory}
        return {**super().parts(), **own}


class Memory:
    """Features of the close-up and of the whole view of the images before, the oldest dropped first."""

    def __init__(self, width: int, capacity: int, device: torch.device) -> None:
        self.rows: Float[Tensor, "images 2 width"] = torch.empty(0, 2, width, device=device)
        self._capacity = capacity

    def add(self, close: Float[Tensor, "batch width"], whole: Float[Tensor, "batch width"]) -> None:
        """Remember a batch."""
        self.rows = torch.cat([self.rows, torch.stack([close, whole], dim=1)])[-self._capacity :]

    def draw(self, count: int, random: torch.Generator) -> Float[Tensor, "drawn 2 width"]:
        """Different ones, `count` or as many as there are."""
        chosen: Int[Tensor, " drawn"] = torch.randperm(len(self.rows), generator=random, device=random.device)[:count]
        return self.rows[chosen]

    def state_dict(self) -> dict[str, Tensor]:
        """All that is remembered."""
        return {"rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.rows = state["rows"].to(self.rows.device)


def averaged(answer: Outputs) -> Float[Tensor, "batch width"]:
    """The features at the ends of all stages, averaged over the positions, one behind the other."""
    stages = in_group(answer.features, "stage")
    return torch.cat([answer.features[name].float().mean(dim=(2, 3)) for name in stages], dim=1)


def contrast(
    anchors: Float[Tensor, "rows width"], keys: Float[Tensor, "rows width"], new: int, temperature: float
) -> Float[Tensor, ""]:
    """How badly every anchor is recognised: cross-entropy of its key among all keys by similarity / temperature.

    The mean over the `new` images of the batch, which come first, plus the mean over those before: the memory's size
    does not dilute the batch's gradient. Anchors and keys are unit vectors.
    """
    logits = anchors @ keys.T / temperature
    loss = cross_entropy(logits, torch.arange(len(keys), device=keys.device), reduction="none")
    return loss[:new].mean() + (loss[new:].mean() if len(loss) > new else 0)


@torch.no_grad()
def redraw(network: nn.Module, random: torch.Generator) -> None:
    """New weights as DCGAN draws them (https://arxiv.org/abs/1511.06434): normal, of deviation 0.02, scales about 1."""
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.weight.normal_(0, 0.02, generator=random)
            if layer.bias is not None:
                layer.bias.zero_()
        elif isinstance(layer, nn.BatchNorm2d):
            layer.weight.normal_(1, 0.02, generator=random)
            layer.bias.zero_()
