"""The network that makes images from noise, and the base class of the methods that train one throughout a run."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.generators.base import Method, Stateful, Task, descend, total
from dfkd.system.limits import check_at_least
from dfkd.system.torch_optim import Adam

BETAS = (0.5, 0.999)
"""Betas of Adam, as in the authors' code of CMI, FastDFKD, MosaicKD and NAYER.

That of DAFL, DFAD and ZSKT has Adam's usual (0.9, 0.999)."""
SLOPE = 0.2
"""Negative slope of the leaky ReLU."""
CONTRAST = 2.0
"""Standard deviation of the sigmoid's input with `contrast`. Pixels then deviate by about a third of their range."""
LEAST = 32
"""Smallest batch that `draw` renders, because BatchNorm uses the statistics of the batch."""


class Generator(nn.Sequential):
    """Generator network from noise [batch, latent] to images [batch, channels, size, size] in [0, 1].

    A linear layer makes maps of a quarter of the size with 2 `width` channels. Two blocks follow, each with upsampling
    by 2, a convolution and BatchNorm. This is the generator of DAFL (https://arxiv.org/abs/1904.01186), which most
    later papers kept, except for its output. The original ends in a tanh and a BatchNorm without scale, whose values
    exceed the range of pixels. A sigmoid here keeps the range, so that teacher, student and shards get the same image.

    `contrast` adds that BatchNorm before the sigmoid. A batch whose pixels are all black, white or equal is then
    impossible. A loss without a term on the images themselves would drive the generator there.

    A size that 4 does not divide is reached by interpolation. BatchNorm always uses the batch's statistics, so that
    images are drawn as in training. Raises: ValueError for a size below 4.
    """

    def __init__(self, latent: int, size: int, channels: int, width: int = 64, contrast: bool = False) -> None:
        if size < 4:
            raise ValueError(f"images of {size} pixels are too small for a generator: 4 at least")
        quarter = size // 4
        super().__init__(
            nn.Linear(latent, 2 * width * quarter**2),
            nn.Unflatten(1, (2 * width, quarter, quarter)),
            _normalized(2 * width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            _normalized(2 * width),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Upsample(size=(size, size)),
            nn.Conv2d(2 * width, width, 3, padding=1),
            _normalized(width),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv2d(width, channels, 3, padding=1),
            Contrast(channels) if contrast else nn.Identity(),
            nn.Sigmoid(),
        )
        self.latent = latent


class Contrast(nn.Module):
    """Layer that gives every channel mean 0 and standard deviation `CONTRAST` over all pixels of the batch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False, track_running_stats=False)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Return the normalized batch, in the same shape."""
        return CONTRAST * self.norm(x)


def _normalized(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=False)


def noise(count: int, latent: int, random: torch.Generator) -> Float[Tensor, "count latent"]:
    """Draw standard normal noise on the device of `random`."""
    return torch.randn(count, latent, generator=random, device=random.device)


def build_generator(task: Task, latent: int, width: int, contrast: bool = False) -> Generator:
    """Build the generator of a task. Its initial weights are drawn with torch's global random numbers."""
    network = Generator(latent, task.size, task.channels, width, contrast)
    return network.to(task.device).to(memory_format=torch.channels_last)


def render(
    network: nn.Module, latent: Float[Tensor, "count latent"], task: Task
) -> Float[Tensor, "count channels size size"]:
    """Run a generator network on its input and return images in [0, 1], with gradients."""
    with task.teacher.place.autocast():
        images: Tensor = network(latent)
    return images.float()


class GeneratorMethod(Method):
    """A generator with a `Generator` network, which Adam trains. A subclass defines `update`.

    Args:
        task: The teacher, the size of the images, and the seed.
        latent: Width of the noise.
        width: Channels of the network's last layers.
        lr: Learning rate of Adam.
        steps: Calls of `update` in a training without a student.
        contrast: Whether the images of a batch have a fixed contrast.

    Raises:
        RequestError: A number is out of its range.
    """

    def __init__(self, task: Task, *, latent: int, width: int, lr: float, steps: int, contrast: bool = False) -> None:
        check_at_least(1, latent=latent, width=width, steps=steps)
        check_at_least(lr=lr)
        super().__init__(task)
        self.network = build_generator(task, latent, width, contrast)
        self.optimizer = Adam(self.network.parameters(), lr=lr, betas=BETAS)
        self._steps = steps

    def make(self, count: int) -> Float[Tensor, "count channels size size"]:
        """Make new images with gradients to the network.

        Args:
            count: The number of images.

        Returns:
            Pixels in [0, 1], [count, channels, size, size].
        """
        return render(self.network, noise(count, self.network.latent, self.random), self.task)

    def learn(self, terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, Tensor]:
        """Take one optimizer step of the network on a weighted sum of terms.

        Args:
            terms: Scalars with gradients, by name.
            weights: The weight of each term.

        Returns:
            The terms for the metrics, before their weights.
        """
        descend(self.optimizer, total(terms, weights))
        self.updates += 1
        return {name: term.detach() for name, term in terms.items()}

    def sample(self, count: int, random: torch.Generator) -> Float[Tensor, "count channels size size"]:
        """Draw `count` new images."""
        return self.draw(count, random)

    @torch.no_grad()
    def draw(self, count: int, random: torch.Generator) -> Float[Tensor, "count channels size size"]:
        """Draw new images from the network, without gradients. A subclass may override `sample` to return other images.

        Args:
            count: The number of images.
            random: The random number generator to draw them with.

        Returns:
            Pixels in [0, 1], [count, channels, size, size].
        """
        return render(self.network, noise(max(count, LEAST), self.network.latent, random), self.task)[:count]

    def images(self, start: int, count: int) -> Float[Tensor, "count channels size size"]:
        """Return images by number, drawn in blocks of one batch. The number of a block is part of its seed."""
        block = max(self.task.batch, LEAST)
        first, last = start // block, -(-(start + count) // block)
        made = [self.draw(block, self._numbered(number)) for number in range(first, last)]
        return torch.cat(made)[start - first * block :][:count]

    def updates_for(self, count: int) -> int:
        """Return the steps of the training, which do not depend on the number of images."""
        return self._steps

    def parts(self) -> Mapping[str, Stateful]:
        """Return the network and its optimizer."""
        return {"network": self.network, "optimizer": self.optimizer}

    def _numbered(self, number: int) -> torch.Generator:
        """Return random numbers for a block, decided only by the seed and the block's number, not by the training."""
        seed = int(np.random.SeedSequence([self.task.seed, number]).generate_state(1, np.uint64)[0] >> 1)
        return torch.Generator(self.task.device).manual_seed(seed)
