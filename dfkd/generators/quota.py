"""How many images to keep: a total, or a number for each class."""

import numpy as np
from jaxtyping import Bool, Int

from dfkd.system.errors import RequestError


def missing(held: Int[np.ndarray, " classes"], count: int | None) -> Int[np.ndarray, " classes"]:
    """Return the number of images that each class lacks to an even level.

    With `count`, the level is the highest that `count` images reach; the remainder goes to the classes with the fewest
    images. Without it, the level is the mean over classes. Raises: RequestError if no class lacks images.
    """
    level = -(-int(held.sum()) // len(held))
    if count is not None:
        level = int(held.min())
        while np.clip(level + 1 - held, 0, None).sum() <= count:
            level += 1
    lacks = np.clip(level - held, 0, None)
    if count is not None:
        lowest = np.argsort(held, kind="stable")
        lacks[lowest[: count - int(lacks.sum())]] += 1  # the remainder, one per class
    if lacks.sum() == 0:
        raise RequestError("the classes are even already; give the number of images to add with --count")
    return lacks


class Quota:
    """Number of images that are still to keep, in total and optionally by class."""

    def __init__(self, count: int, per_class: Int[np.ndarray, " classes"] | None = None) -> None:
        """Start with `count` images to keep. With `per_class`, they also have a limit for each class."""
        self.count, self.per_class = count, per_class
        self._left = count
        self._of_class = None if per_class is None else per_class.copy()

    @classmethod
    def of(cls, per_class: Int[np.ndarray, " classes"]) -> "Quota":
        """Return the quota for these numbers of images per class."""
        return cls(int(per_class.sum()), per_class)

    @property
    def full(self) -> bool:
        """Whether the quota is filled."""
        return self._left == 0

    def take(
        self, predictions: Int[np.ndarray, " block"], finite: Bool[np.ndarray, " block"]
    ) -> Int[np.ndarray, " taken"]:
        """Return the positions of the images that the quota accepts, in order.

        Images without finite logits are refused.
        """
        taken = []
        for position, prediction in enumerate(predictions.tolist()):
            open_ = self._left > 0 and (self._of_class is None or self._of_class[prediction] > 0)
            if open_ and finite[position]:
                taken.append(position)
                self._left -= 1
                if self._of_class is not None:
                    self._of_class[prediction] -= 1
        return np.array(taken, dtype=np.int64)

    def lacking(self) -> dict[int, int]:
        """Return the number of images still to keep, by class, without the classes that are full.

        It is empty for a quota without classes.
        """
        left = self._of_class if self._of_class is not None else np.zeros(0, dtype=np.int64)
        return {int(k): int(left[k]) for k in np.flatnonzero(left)}
