"""Orders of stored images (`--batches`): shuffled, or with several images of a class in each batch.

`--batches` names the functions `shuffled`, `classes`, `superclasses` and `hardest`. Your own order has the same form:
`order(stored, batch, seed, *, parameters...) -> Order`. An order is an endless stream of row numbers that its seed
alone decides. The rows at a position can be computed at any time, so that a run resumes from a position. An order with
the methods of `Following` gets the divergence of the student from the teacher.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from dfkd.select.diversity import clusters
from dfkd.system.errors import RequestError
from dfkd.system.limits import SHARE, check_at_least
from dfkd.training.hardest import HardestOrder

__all__ = ["classes", "hardest", "shuffled", "superclasses"]


@runtime_checkable
class Order(Protocol):
    """An endless stream of row numbers."""

    def rows(self, position: int, count: int) -> Int[np.ndarray, " count"]:
        """Return the rows at a range of positions.

        Args:
            position: The first position, from 0.
            count: The number of positions.

        Returns:
            Row numbers.
        """
        ...


@runtime_checkable
class Following(Order, Protocol):
    """An order that follows the student. The rows of each batch are drawn once, one batch after the other."""

    def seen(self, rows: Int[np.ndarray, " batch"], values: Float[Tensor, " batch"]) -> None:
        """Record the divergence of the student from the teacher, after a batch.

        Args:
            rows: The rows of the batch.
            values: KL divergence of each row, on the device.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what the order has drawn and seen.

        Returns:
            Tensors and numbers by name.
        """
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from `state_dict`.

        Args:
            state: The state that `state_dict` returned.
        """
        ...


@dataclass(frozen=True)
class Stored:
    """Properties of the stored images that an order may use."""

    images: int
    """Number of images."""
    column: Callable[[str], np.ndarray]
    """Function from the name of a column of the selections to its values, one row per image.

    Columns are `prediction`, `logits` [images, classes], ...
    """


def shuffled(stored: Stored, batch: int, seed: int) -> Order:
    """Draw all images in each epoch, in a random permutation."""
    return ShuffledOrder(stored.images, seed)


def classes(stored: Stored, batch: int, seed: int, *, each: int = 8) -> Order:
    """Draw batches of `each` images for each of batch / `each` predicted classes, which take turns."""
    return GroupedOrder(stored.column("prediction"), batch, each, seed)


def superclasses(stored: Stored, batch: int, seed: int, *, each: int = 8, count: int = 16) -> Order:
    """Draw batches of `each` images for each of batch / `each` clusters of similar logits, out of `count` clusters."""
    return GroupedOrder(clusters_of(stored.column("logits").astype(np.float32), count, seed), batch, each, seed)


def hardest(stored: Stored, batch: int, seed: int, *, share: Annotated[float, SHARE] = 0.5) -> Order:
    """Draw all images once, then again and again the `share` with the largest divergence from the teacher."""
    return HardestOrder(stored.images, share, seed)


class ShuffledOrder:
    """An order in which every epoch is a permutation of all images."""

    def __init__(self, images: int, seed: int) -> None:
        self._images, self._seed = images, seed
        self._last = (-1, np.empty(0, dtype=np.int64))

    def rows(self, position: int, count: int) -> Int[np.ndarray, " count"]:
        """Return the rows at `count` positions from `position` on, which may reach into the next epochs."""
        parts: list[np.ndarray] = []
        while count:
            epoch, offset = divmod(position, self._images)
            number, order = self._last
            if number != epoch:
                order = np.random.default_rng([self._seed, epoch]).permutation(self._images)
                self._last = (epoch, order)
            parts.append(order[offset : offset + count])
            position, count = position + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


class GroupedOrder:
    """An order whose batches have `each` images of batch / each groups: classes, or clusters of images.

    Correlation congruence for knowledge distillation, 2019, https://arxiv.org/abs/1904.01802, draws batches of this
    form from labels (class-uniform) and from clusters of features (superclass-uniform). Here `groups` are the teacher's
    predictions or `clusters_of` its logits. Groups take turns. In a batch, the turns of two groups differ by at most
    one. Over time all groups have the same share, whatever their sizes. In a group, every image is seen before one is
    seen twice. The `each` images of a turn are different, unless the group has fewer images. Groups without images do
    not take part. Positions count images, and a batch begins at every multiple of its size. The order takes up to 4
    `each` bytes per image.
    """

    def __init__(self, groups: Int[np.ndarray, " images"], batch: int, each: int, seed: int) -> None:
        """Start an order of the images whose groups are given, one number per image.

        Raises: RequestError unless `each` is at least 1 and divides `batch`, and without images.
        """
        check_at_least(1, each=each)
        if batch < 1 or batch % each:
            raise RequestError(
                f"batches of {batch} images cannot hold groups of each={each}; "
                f"{max(1, round(batch / each)) * each} images can"
            )
        if len(groups) == 0:
            raise RequestError("there are no images to draw batches from: the selection is empty")
        self._batch, self._each, self._seed = batch, each, seed
        by_group = np.argsort(groups, kind="stable")
        self._members = np.split(by_group, np.flatnonzero(np.diff(groups[by_group])) + 1)
        self._turns = _Deal(len(self._members), batch // each, (seed, 0))
        self._images: dict[int, _Deal] = {}

    def rows(self, position: int, count: int) -> Int[np.ndarray, " count"]:
        """Return the rows at `count` positions from `position` on."""
        first, last = position // self._batch, -(-(position + count) // self._batch)
        batches = [self._rows_of(number) for number in range(first, last)]
        start = position - first * self._batch
        return np.concatenate(batches)[start : start + count] if batches else np.empty(0, dtype=np.int64)

    def _rows_of(self, number: int) -> Int[np.ndarray, " batch"]:
        """Return the rows of a batch, group by group."""
        groups, turns = np.unique(self._turns.hand(number), return_counts=True)
        before = self._turns.dealt(number)[groups]
        parts = []
        for group, first, count in zip(groups.tolist(), before.tolist(), turns.tolist(), strict=True):
            members = self._members[group]
            if group not in self._images:
                self._images[group] = _Deal(len(members), self._each, (self._seed, 1, group))
            parts += [members[self._images[group].hand(turn)] for turn in range(first, first + count)]
        return np.concatenate(parts)


def clusters_of(logits: Float[np.ndarray, "images classes"], count: int, seed: int) -> Int[np.ndarray, " images"]:
    """Return the cluster of each image, out of `count` clusters of similar logits, for `GroupedOrder`.

    Spherical k-means of the logits (cosine) finds the clusters. Some may have no image. Raises: RequestError unless 1
    <= count <= images.
    """
    if not 1 <= count <= len(logits):
        raise RequestError(f"{count} clusters of {len(logits)} images: write a number from 1 to {len(logits)}")
    return clusters(logits, count, seed)


class _Deal:
    """Cards dealt endlessly in hands of one size. No hand has a card twice while it lacks another card.

    A hand has all cards as often as they fit, and a rest from an endless stream of permutations. A permutation that
    begins within a hand first deals cards that the hand lacks. After some permutations, at most as many as a hand has
    cards, a permutation ends together with a hand. Then a new round begins, which the seed and its number alone decide.
    """

    def __init__(self, cards: int, size: int, seed: tuple[int, ...]) -> None:
        self._cards, self._seed = cards, seed
        self._whole, self._rest = divmod(size, cards)
        self._permutations = self._rest // math.gcd(self._rest, cards) if self._rest else 0
        self._hands = self._permutations * cards // self._rest if self._rest else 1
        self._last = (-1, np.empty(0, dtype=np.int32))

    def hand(self, number: int) -> Int[np.ndarray, " size"]:
        """Return the cards of a hand."""
        round_number, index = divmod(number, self._hands)
        rest = self._round(round_number)[index * self._rest : (index + 1) * self._rest]
        return np.concatenate([*[np.arange(self._cards)] * self._whole, rest]).astype(np.int64)

    def dealt(self, number: int) -> Int[np.ndarray, " cards"]:
        """Return how often every card was dealt before a hand."""
        round_number, index = divmod(number, self._hands)
        in_round = np.bincount(self._round(round_number)[: index * self._rest], minlength=self._cards)
        return number * self._whole + round_number * self._permutations + in_round

    def _round(self, number: int) -> Int[np.ndarray, " dealt"]:
        """Return the rests of all hands of a round, one after the other."""
        if not self._rest:
            return np.empty(0, dtype=np.int32)
        last, cards = self._last
        if last != number:
            rng = np.random.default_rng([*self._seed, number])
            parts = [rng.permutation(self._cards).astype(np.int32)]
            for i in range(1, self._permutations):
                held = i * self._cards % self._rest
                parts.append(_after(parts[-1][self._cards - held :], self._rest - held, rng.permutation(self._cards)))
            cards = np.concatenate(parts)
            self._last = (number, cards)
        return cards


def _after(held: Int[np.ndarray, " held"], missing: int, cards: Int[np.ndarray, " cards"]) -> Int[np.ndarray, " cards"]:
    """Reorder a permutation so that its first `missing` cards are not among those held."""
    if len(held) == 0:
        return cards.astype(np.int32)
    new = np.flatnonzero(~np.isin(cards, held))[:missing]
    return np.concatenate([cards[new], np.delete(cards, new)]).astype(np.int32)
