"""NAYER: images from embeddings of the classes, varied by a noise layer that is drawn anew for every batch."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dfkd.generators.base import Task
from dfkd.generators.generator import BETAS, build_generator
from dfkd.generators.inversion import InversionMethod, Recipe
from dfkd.models.ensemble import leader
from dfkd.models.sharded import complete
from dfkd.system import random_state
from dfkd.system.errors import RequestError, reason
from dfkd.system.limits import check_at_least
from dfkd.system.paper import Paper
from dfkd.system.torch_optim import Adam


class NAYER(InversionMethod):
    """Images from embeddings of the classes, varied by a noise layer that is drawn anew for every batch.

        one_hot * CE(t, y) + statistics * distance of BatchNorm statistics + adversarial * adversarial term

    t are the teacher's logits [batch, classes] and y the wanted classes. An image is made from the embedding of its
    class and not from noise. The embedding is normalized over the batch. It passes a noisy layer and then the
    generator. A noisy layer is linear, to `hidden` values, and its weights are drawn from N(0, 1) for every batch. One
    noisy layer serves as many images as there are classes, one of each. So no two images share both noisy layer and
    class. For every batch, `steps` updates of Adam fit the noisy layers and the generator. The statistics include those
    of earlier batches (`momentum`). The generator continues from batch to batch. After `life` batches a new one
    replaces it.

    This departs from the paper in the embeddings. There, a language model (CLIP) embeds the name of the class. Neither
    names nor model are available here. `embeddings=FILE.npy` with numbers [classes, width] supplies them. Without this
    option, the embedding of a class is its row of the teacher's last linear layer. If there is none, classes are random
    orthogonal directions. How much accuracy this costs against the paper's embeddings is not known.

    The authors' code makes batches of 400 in 30 steps (40 for 100 classes). It makes 200 batches before the student
    begins and two every 400 student steps. `every` and `warmup` are for short runs. Here the best images of a batch are
    those with the lowest loss among the batch's own steps. The authors' code also compares with earlier batches, and
    may keep images that are hardly fitted.
    """

    paper = Paper(
        "NAYER: Noisy layer data generation for efficient and effective data-free knowledge distillation",
        2023,
        "2310.00258",
    )

    def __init__(
        self,
        task: Task,
        *,
        steps: int = 30,
        every: int = 50,
        warmup: int = 5,
        life: int = 20,
        lr: float = 4e-3,
        one_hot: float = 0.5,
        statistics: float = 10.0,
        adversarial: float = 1.33,
        momentum: float = 0.9,
        hidden: int = 1000,
        width: int = 64,
        flip: bool = True,
        embeddings: str | None = None,
    ) -> None:
        """Build the noisy layers and the generator.

        A batch takes `steps` updates and is made every `every` student steps. `warmup` batches are made before the
        student's first step. `lr` is Adam's learning rate. `one_hot`, `statistics` and `adversarial` are the weights of
        the terms. Raises: RequestError for a teacher without BatchNorm, or an embedding file that does not fit.
        """
        check_at_least(1, life=life, hidden=hidden)
        self._rate, self._life, self._width = lr, life, width
        found = from_file(embeddings, task.classes) if embeddings is not None else from_teacher(task)
        self.embeddings = found.to(task.device)
        each = task.classes if task.wanted is None else 1  # else drawn images of one class could be equal
        layers = -(-task.batch // each)
        network = NoisyGenerator(found.shape[1], hidden, layers, each, build_generator(task, hidden, width))
        recipe = Recipe(steps, every, warmup, flip, one_hot, statistics, adversarial, momentum)
        super().__init__(task, recipe, network.to(task.device), found.shape[1])

    def labels(self, count: int) -> Int[Tensor, " count"]:
        """Return all classes in turn, and random ones for an incomplete last turn.

        With `Task.wanted`, draw classes by their shares.
        """
        if self.task.wanted is not None:
            return super().labels(count)
        classes, device = self.task.classes, self.task.device
        whole = torch.arange(count // classes * classes, device=device) % classes
        return torch.cat([whole, torch.randperm(classes, generator=self.random, device=device)[: count % classes]])

    def input(self, labels: Int[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        """Return the embeddings of the classes."""
        return self.embeddings[labels]

    @torch.no_grad()
    def renew(self) -> None:
        """Draw new noisy layers, and after `life` batches initialize the generator again."""
        assert isinstance(self.network, NoisyGenerator)
        self.network.noise.normal_(generator=self.random)
        self.network.bias.zero_()
        if self.batches and self.batches % self._life == 0:
            with random_state.kept(self.task.seed + self.batches):
                fresh = build_generator(self.task, self.network.noise.shape[2], self._width)
            self.network.generator.load_state_dict(fresh.state_dict())

    def fresh_optimizer(self) -> torch.optim.Optimizer:
        """Return a new optimizer of the noisy layers and the generator. The embeddings are not trained."""
        return Adam(self.network.parameters(), lr=self._rate, betas=BETAS)


class NoisyGenerator(nn.Module):
    """Network from class embeddings [batch, width] to images: BatchNorm, noisy layers, and a generator.

    Each of the `layers` noisy layers serves `each` consecutive images of the batch.
    """

    def __init__(self, width: int, hidden: int, layers: int, each: int, generator: nn.Module) -> None:
        super().__init__()
        self.normalized = nn.BatchNorm1d(width, track_running_stats=False)
        self.noise = nn.Parameter(torch.zeros(layers, width, hidden))
        self.bias = nn.Parameter(torch.zeros(layers, 1, hidden))
        self.generator = generator
        self._each = each

    def forward(self, embedded: Float[Tensor, "batch width"]) -> Float[Tensor, "batch channels size size"]:
        """Return images in [0, 1]."""
        count, rows = len(embedded), self.noise.shape[0] * self._each
        x = nn.functional.pad(self.normalized(embedded), (0, 0, 0, rows - count))
        mixed = torch.baddbmm(self.bias, x.view(self.noise.shape[0], self._each, -1), self.noise)
        images: Tensor = self.generator(mixed.flatten(0, 1)[:count])
        return images


def from_teacher(task: Task) -> Float[Tensor, "classes width"]:
    """Return the rows of the teacher's last linear layer with one row per class, else random orthogonal directions."""
    for layer in reversed(list(leader(task.teacher.model.module)[1].modules())):
        if isinstance(layer, nn.Linear) and layer.out_features == task.classes:
            return complete(layer.weight.detach()).float().clone()
    random = torch.Generator().manual_seed(task.seed)
    square = torch.randn(task.classes, task.classes, generator=random, dtype=torch.float64)
    return torch.linalg.qr(square)[0].float()


def from_file(file: str, classes: int) -> Float[Tensor, "classes width"]:
    """Read embeddings from a .npy file. Raises: RequestError unless the file has one finite row per class."""
    try:
        values = np.load(Path(file), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RequestError(f"embeddings={file} cannot be read as .npy: {reason(error)}") from None
    if not isinstance(values, np.ndarray) or values.ndim != 2 or len(values) != classes or not values.size:
        shape = list(values.shape) if isinstance(values, np.ndarray) else "no single array"
        raise RequestError(f"embeddings={file} has {shape}; save numbers [{classes}, width], one row for each class")
    if not np.issubdtype(values.dtype, np.number) or not np.isfinite(values).all():
        raise RequestError(f"embeddings={file} has values that are not finite numbers")
    return torch.from_numpy(values.astype(np.float32))
