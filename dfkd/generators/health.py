"""Detection of collapsed generators: images of one class, images that look the same, or a large statistics distance."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dfkd.generators.base import Method, drawn
from dfkd.models.features.bn_statistics import BatchStatistics
from dfkd.system.console import say

OBSERVED = 64
"""Images per observation."""
EVERY = 50
"""Steps from one observation to the next. This costs about a hundredth of the teacher's work."""
FEW_CLASSES = 0.2
"""Share of the classes that `OBSERVED` images could show. A warning appears below 1 plus this share of the classes."""
ALIKE = 0.02
"""Root mean square difference of two images, of a pixel range of 1, below which they look the same."""


def effective_classes(predictions: Int[Tensor, " images"], classes: int) -> Float[Tensor, ""]:
    """Return the effective number of predicted classes: exp of the entropy of their histogram.

    k equally frequent classes give k.
    """
    share = torch.bincount(predictions, minlength=classes).float() / len(predictions)
    return torch.special.entr(share).sum().exp()


def pairwise_distance(images: Float[Tensor, "images channels height width"]) -> Float[Tensor, ""]:
    """Return the root mean square difference of two images, averaged over all pairs."""
    flat = images.flatten(1)
    return torch.pdist(flat).mean() / flat.shape[1] ** 0.5


class Health:
    """Observer that measures a method's images every `EVERY` steps, and warns once about each sign of a collapse."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self._statistics = BatchStatistics(method.task.teacher.model.module)
        self._warned: set[str] = set()
        self.images: Tensor | None = None
        """Images of the last observation."""

    @torch.no_grad()
    def observe(self, step: int) -> dict[str, Tensor]:
        """Measure fresh images at every `EVERY`-th step, and return the measures by name.

        Other steps return nothing.
        """
        if step % EVERY:
            return {}
        method = self._method
        random = torch.Generator(method.task.device).manual_seed(step)  # separate from the run's random numbers
        images = self.images = drawn(method, OBSERVED, lambda: method.sample(OBSERVED, random))
        with self._statistics.watched():
            answer = method.teach(images)
        seen = {
            "generated_classes": effective_classes(answer.logits.argmax(dim=1), method.task.classes),
            "generated_distance": pairwise_distance(images),
        }
        if distances := self._statistics.distances():
            seen["statistics_distance"] = torch.stack(distances).sum()
        self._warn(step, seen)
        return seen

    def _warn(self, step: int, seen: dict[str, Tensor]) -> None:
        most = min(self._method.task.classes, OBSERVED)
        classes, distance = float(seen["generated_classes"]), float(seen["generated_distance"])
        signs = {
            f"images of {classes:.1f} of {self._method.task.classes} classes": classes < FEW_CLASSES * most + 1,
            f"images that differ by {255 * distance:.1f} of 255 gray levels": distance < ALIKE,
        }
        for (sign, shown), kind in zip(signs.items(), ("classes", "distance"), strict=True):
            if shown and kind not in self._warned:
                self._warned.add(kind)
                say(
                    f"warning: at step {step} the generator makes {sign}: it may have collapsed (metrics.jsonl goes on)"
                )
