"""How many images are wanted: so many of any class, or so many of each."""

import numpy as np
from jaxtyping import Bool, Int

from dfkd.system.errors import RequestError


def missing(held: Int[np.ndarray, " classes"], count: int | None) -> Int[np.ndarray, " classes"]:
    """The images that each class lacks to an even level: with `count` the level that so many reach, else the mean.

    Raises: RequestError where no class lacks any.
    """
    level = -(-int(held.sum()) // len(held))
    if count is not None:
        level = int(held.min())
        while np.clip(level + 1 - held, 0, None).sum() <= count:
            level += 1
    lacks = np.clip(level - held, 0, None)
    if count is not None:
        lowest = np.argsort(held, kind="stable")
        lacks[lowest[: count - int(lacks.sum())]] += 1  # the rest, one a class
    if lacks.sum() == 0:
        raise RequestError("the classes are even already; say how many images to add with count")
    return lacks


class Quota:
    """What is still wanted, image by image."""

    def __init__(self, count: int, per_class: Int[np.ndarray, " classes"] | None = None) -> None:
        """`count` images in all; of each class so many where that is said."""
        self.count, self.per_class = count, per_class
        self._left = count
        self._of_class = None if per_class is None else per_class.copy()

    @classmethod
    def of(cls, per_class: Int[np.ndarray, " classes"]) -> "Quota":
        """So many images of each class."""
        return cls(int(per_class.sum()), per_class)

    @property
    def full(self) -> bool:
        """Whether nothing is wanted any more."""
        return self._left == 0

    def take(
        self, predictions: Int[np.ndarray, " block"], finite: Bool[np.ndarray, " block"]
    ) -> Int[np.ndarray, " taken"]:
        """The positions of the images that are taken, the earlier first; those without a finite answer never are."""
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
        """What is left, by class; nothing where any class would do."""
        left = self._of_class if self._of_class is not None else np.zeros(0, dtype=np.int64)
        return {int(k): int(left[k]) for k in np.flatnonzero(left)}
