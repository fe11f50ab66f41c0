"""A batch that several processes share: which rows are whose, and what is needed of the other rows.

The rows of a batch lie with the ranks in their order, as evenly as it goes. Within a share the gradients are `count()`
times those of the whole batch, because DistributedDataParallel takes the mean over the ranks; outside, where every
rank computes the same numbers from the whole batch, they are the true ones. `whole` and `own` lead from one to the
other. With one process each function returns what it is given.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dfkd.system import ranks
from dfkd.system.errors import RequestError
from dfkd.system.random_state import restore, states


@dataclass(frozen=True)
class Share:
    """Rows `start` to `stop` of a batch of `of` images."""

    start: int
    stop: int
    of: int

    @property
    def rows(self) -> slice:
        """As an index."""
        return slice(self.start, self.stop)

    def __len__(self) -> int:
        return self.stop - self.start

    def within(self, start: int, stop: int) -> "Share":
        """What of the share lies in a part of the batch, counted from the part's start."""
        first, last = (min(max(edge, start), stop) - start for edge in (self.start, self.stop))
        return Share(first, last, stop - start)


def share(of: int) -> Share:
    """The rows of this process."""
    edges = [number * of // ranks.count() for number in (ranks.rank(), ranks.rank() + 1)]
    return Share(edges[0], edges[1], of)


def all_of(of: int) -> Share:
    """All rows."""
    return Share(0, of, of)


def weight(of: int) -> float:
    """What the mean over this process's rows counts in the mean over the ranks, so that it is that over all rows."""
    return len(share(of)) * ranks.count() / of


def check_batch(size: int) -> None:
    """Raises: RequestError where not every rank has a row."""
    if size < ranks.count():
        raise RequestError(
            f"--batch-size {size} is the whole batch, and there are {ranks.count()} processes: give at least as many "
            "images"
        )


def whole(x: Tensor, of: int) -> Tensor:
    """The rows of all ranks; gradients go back to this rank's own."""
    if ranks.count() == 1:
        return x
    gathered: Tensor = _Whole.apply(x, of) if x.requires_grad and torch.is_grad_enabled() else _gather(x, of)
    return gathered


def own(x: Tensor) -> Tensor:
    """This rank's rows of a batch that all ranks have; the gradients of all rows come back to every rank."""
    if ranks.count() == 1:
        return x
    rows: Tensor = _Own.apply(x) if x.requires_grad and torch.is_grad_enabled() else x[share(len(x)).rows]
    return rows


def summed(x: Tensor) -> Tensor:
    """The sum over the ranks, with gradients."""
    if ranks.count() == 1:
        return x
    total: Tensor = _Summed.apply(x)
    return total


def pooled(mean: Tensor, variance: Tensor, number: Tensor | float) -> tuple[Tensor, Tensor]:
    """Mean and variance over the values of all ranks, from those over `number` values here; with gradients."""
    if ranks.count() == 1:
        return mean, variance
    numbers = torch.as_tensor(number, dtype=torch.float64, device=mean.device).expand_as(mean)
    # in one exchange: what cancels in the difference of squares is not missed in float64
    sums = torch.stack([numbers * mean, numbers * (variance + mean.double().square()), numbers])
    first, second, count = summed(sums)
    together = first / count
    return together.to(mean.dtype), (second / count - together.square()).clamp_min(0).to(variance.dtype)


def means(row: dict[str, float]) -> dict[str, float]:
    """The mean over the ranks of each value."""
    if ranks.count() == 1:
        return row
    values = torch.tensor([*row.values()], dtype=torch.float64)
    dist.all_reduce(values)
    return dict(zip(row, (values / ranks.count()).tolist(), strict=True))


@contextmanager
def own_random(device: torch.device) -> Iterator[None]:
    """Random numbers of this rank's own, for a network that draws some for its rows (dropout).

    What else is drawn from torch's global state stays the same on all ranks; and as it is with one process, unless the
    network draws.
    """
    if ranks.count() == 1:
        yield
        return
    before = states(device)
    seed = int(torch.randint(2**62, ()))
    after = states(device)
    torch.manual_seed(seed + ranks.rank())
    seeded = states(device)
    try:
        yield
    finally:
        drew = any(not torch.equal(a, b) for a, b in zip(seeded, states(device), strict=True))
        restore(device, after if drew else before)


def _gather(x: Tensor, of: int) -> Tensor:
    """All rows of a tensor of any type, through its bytes; where shares differ in size, they are filled up by a row."""
    longest = -(-of // ranks.count())
    filled = x.detach().contiguous()
    if len(x) < longest:
        filled = torch.cat([filled, filled.new_zeros(longest - len(x), *x.shape[1:])])
    gathered = filled.new_empty(ranks.count() * longest, *x.shape[1:])
    if filled.numel():
        dist.all_gather_into_tensor(_bytes(gathered), _bytes(filled))
    if of == len(gathered):
        return gathered
    edges = [number * of // ranks.count() for number in range(ranks.count() + 1)]
    parts = gathered.split(longest)
    return torch.cat([part[: b - a] for part, a, b in zip(parts, edges[:-1], edges[1:], strict=True)])


def _bytes(x: Tensor) -> Tensor:
    return x.view(-1).view(torch.uint8)


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, of: int) -> Tensor:
        ctx.of = of
        return _gather(x, of)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[share(ctx.of).rows] * ranks.count(), None


class _Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.of = len(x)
        return x[share(len(x)).rows].clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _gather(gradient, ctx.of) / ranks.count()


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _all_sum(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _all_sum(gradient)


def _all_sum(x: Tensor) -> Tensor:
    total = x.detach().clone().contiguous()
    dist.all_reduce(total)
    return total
