"""Orders of stored images (`--batches`): shuffled, or with several images of a class in each batch.

`--batches` names the functions `shuffled`, `classes`, `superclasses` and `hardest`. Your own order has the same form:
`order(stored, batch, seed, *, parameters...) -> Order`. An order is an endless stream of row numbers that its seed
alone decides. What is at a position can be computed at any time, so that a run resumes from a position. An order with
the methods of `Following` is told how far the student is from the teacher.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from dfkd.system.errors import RequestError
from dfkd.system.limits import SHARE, check_at_least
from dfkd.training.hardest import HardestOrder

__all__ = ["classes", "hardest", "shuffled", "superclasses"]


@runtime_checkable
class Order(Protocol):
    """An endless stream of row numbers."""

    def rows(self, position: int, count: int) -> Int[np.ndarray, " count"]:
        """Give the rows at a range of positions.

        Args:
            position: The first position, from 0.
            count: The number of positions.

        Returns:
            Row numbers.
        """
        ...


@runtime_checkable
class Following(Order, Protocol):
    """An order that follows the student. The rows of each batch are drawn from it once, in turn."""

    def seen(self, rows: Int[np.ndarray, " batch"], values: Float[Tensor, " batch"]) -> None:
        """Take the teacher's divergence from the student, after a batch.

        Args:
            rows: The rows of the batch.
            values: KL divergence of each row, on the device.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Collect what it has drawn and seen.

        Returns:
            Tensors and numbers by name.
        """
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state.

        Args:
            state: What `state_dict` returned.
        """
        ...


@dataclass(frozen=True)
class Stored:
    """What an order may know of the stored images."""

    images: int
    """Their number."""
    column: Callable[[str], np.ndarray]
    """By name, a column of the selections with one row per image: `prediction`, `logits` [images, classes], ..."""


def shuffled(stored: Stored, batch: int, seed: int) -> Order:
    """Every epoch is a permutation of all images."""
    return ShuffledOrder(stored.images, seed)


def classes(stored: Stored, batch: int, seed: int, *, each: int = 8) -> Order:
    """`each` images of every one of batch / `each` classes, by the teacher's predictions, in turns."""
    return GroupedOrder(stored.column("prediction"), batch, each, seed)


def superclasses(stored: Stored, batch: int, seed: int, *, each: int = 8, count: int = 16) -> Order:
    """The same with `count` clusters of images that the teacher says the like of."""
    return GroupedOrder(clusters_of(stored.column("logits").astype(np.float32), count, seed), batch, each, seed)


def hardest(stored: Stored, batch: int, seed: int, *, share: Annotated[float, SHARE] = 0.5) -> Order:
    """After a first pass, again and again the `share` of the images that the student knows least."""
    return HardestOrder(stored.images, share, seed)


class ShuffledOrder:
    """Every epoch is a permutation of all images."""

    def __init__(self, images: int, seed: int) -> None:
        self._images, self._seed = images, seed
        self._last = (-1, np.empty(0, dtype=np.int64))

    def rows(self, position: int, count: int) -> Int[np.ndarray, " count"]:
        """The rows at `count` positions from `position` on; they may reach into the next epochs."""
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
    """Every batch has `each` images of every one of batch / each groups: of classes, or of clusters of images.

    Correlation congruence for knowledge distillation, 2019, https://arxiv.org/abs/1904.01802, draws such batches from
    labels (class-uniform) and from clusters of features (superclass-uniform); here `groups` are the teacher's
    predictions or `clusters_of` its logits. Groups take turns: in a batch no two of them differ by more than one
    turn, and over time all have the same share, whatever their sizes. In a group every image is seen before one is
    seen twice, and the `each` images of a turn are different ones, unless the group has fewer: then they repeat.
    Groups without images do not take part. Positions count images; a batch begins at every multiple of its size. In
    memory: up to 4 `each` bytes an image.
    """

    def __init__(self, groups: Int[np.ndarray, " images"], batch: int, each: int, seed: int) -> None:
        """Order the images whose groups are given, one number an image.

        Raises: RequestError unless `each` is at least 1 and divides `batch`, or without images.
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
        """The rows at `count` positions from `position` on."""
        first, last = position // self._batch, -(-(position + count) // self._batch)
        batches = [self._rows_of(number) for number in range(first, last)]
        start = position - first * self._batch
        return np.concatenate(batches)[start : start + count] if batches else np.empty(0, dtype=np.int64)

    def _rows_of(self, number: int) -> Int[np.ndarray, " batch"]:
        """The rows of a batch, group by group."""
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
    """`count` clusters of images that the teacher says the like of, one number an image, for `GroupedOrder`.

    Spherical k-means of the logits (cosine); some clusters may have no image. Raises: RequestError unless
    1 <= count <= images.
    """
    from dfkd.select.diversity import clusters

    if not 1 <= count <= len(logits):
        raise RequestError(f"{count} clusters of {len(logits)} images: write a number from 1 to that of the images")
    return clusters(logits, count, seed)


class _Deal:
    """Cards dealt endlessly in hands of one size, so that no hand has a card twice while another is not in it.

    A hand has all cards as often as they fit in, and the rest of it from an endless stream of permutations: a
    permutation that begins amid a hand first deals cards that the hand has not got. Where that is in step again,
    after as many permutations as a hand has cards at the most, a round begins; it is drawn from the seed and its
    number alone.
    """

    def __init__(self, cards: int, size: int, seed: tuple[int, ...]) -> None:
        self._cards, self._seed = cards, seed
        self._whole, self._rest = divmod(size, cards)
        self._permutations = self._rest // math.gcd(self._rest, cards) if self._rest else 0
        self._hands = self._permutations * cards // self._rest if self._rest else 1
        self._last = (-1, np.empty(0, dtype=np.int32))

    def hand(self, number: int) -> Int[np.ndarray, " size"]:
        """The cards of a hand."""
        round_number, index = divmod(number, self._hands)
        rest = self._round(round_number)[index * self._rest : (index + 1) * self._rest]
        return np.concatenate([*[np.arange(self._cards)] * self._whole, rest]).astype(np.int64)

    def dealt(self, number: int) -> Int[np.ndarray, " cards"]:
        """How often every card was dealt before a hand."""
        round_number, index = divmod(number, self._hands)
        in_round = np.bincount(self._round(round_number)[: index * self._rest], minlength=self._cards)
        return number * self._whole + round_number * self._permutations + in_round

    def _round(self, number: int) -> Int[np.ndarray, " dealt"]:
        """The rests of all hands of a round, one after the other."""
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
    """A permutation whose first `missing` cards are none of those held; otherwise in its own order."""
    if len(held) == 0:
        return cards.astype(np.int32)
    new = np.flatnonzero(~np.isin(cards, held))[:missing]
    return np.concatenate([cards[new], np.delete(cards, new)]).astype(np.int32)
