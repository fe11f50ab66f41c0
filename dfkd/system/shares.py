"""Shares of a batch: the rows that each of several processes computes, and the exchange of rows between them.

Each rank has a contiguous block of a batch's rows; the blocks are as equal as possible. DistributedDataParallel takes
the mean of gradients over the ranks. Within a share, gradients are therefore `count()` times those of the whole batch.
Outside shares, where every rank computes the same from the whole batch, gradients are the true ones. `whole` and `own`
convert from one to the other. With one process each function returns its input.
"""

from collections.abc import Iterable, Iterator
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
    """One rank's rows of a batch: rows `start` to `stop` (exclusive) of `of` images."""

    start: int
    stop: int
    of: int

    @property
    def rows(self) -> slice:
        """Rows as an index."""
        return slice(self.start, self.stop)

    def __len__(self) -> int:
        return self.stop - self.start

    def within(self, start: int, stop: int) -> "Share":
        """Return the share's rows within rows `start` to `stop` of the batch, counted from `start`."""
        first, last = (min(max(edge, start), stop) - start for edge in (self.start, self.stop))
        return Share(first, last, stop - start)


def share(of: int) -> Share:
    """Return this rank's share of a batch of `of` images."""
    edges = [number * of // ranks.count() for number in (ranks.rank(), ranks.rank() + 1)]
    return Share(edges[0], edges[1], of)


def all_of(of: int) -> Share:
    """Return the share that holds all `of` rows."""
    return Share(0, of, of)


def weight(of: int) -> float:
    """Return the weight of this rank's mean over its rows.

    The mean of the weighted means over the ranks is the mean over all `of` rows.
    """
    return len(share(of)) * ranks.count() / of


def check_batch(size: int) -> None:
    """Raise RequestError if a batch of `size` images has fewer rows than there are ranks."""
    if size < ranks.count():
        raise RequestError(
            f"--batch-size {size} is the whole batch, and there are {ranks.count()} processes: give at least as many "
            "images"
        )


def whole(x: Tensor, of: int) -> Tensor:
    """Return the rows of all ranks [of, ...], gathered from each rank's rows `x`.

    The backward pass gives each rank the gradient of its own rows.
    """
    if ranks.count() == 1:
        return x
    gathered: Tensor = _Whole.apply(x, of) if x.requires_grad and torch.is_grad_enabled() else _gather(x, of)
    return gathered


def own(x: Tensor) -> Tensor:
    """Return this rank's rows of a batch that all ranks hold.

    The backward pass gives every rank the gradient of all rows.
    """
    if ranks.count() == 1:
        return x
    rows: Tensor = _Own.apply(x) if x.requires_grad and torch.is_grad_enabled() else x[share(len(x)).rows]
    return rows


def summed(x: Tensor) -> Tensor:
    """Return the sum of a tensor over the ranks, with gradients."""
    if ranks.count() == 1:
        return x
    total: Tensor = _Summed.apply(x)
    return total


def widest(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest `low` and the largest `high` over the ranks, without gradients."""
    if ranks.count() == 1:
        return low, high
    ends = torch.stack([-low, high]).detach()
    dist.all_reduce(ends, op=dist.ReduceOp.MAX)
    return -ends[0], ends[1]


def pooled(mean: Tensor, variance: Tensor, number: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return mean and variance over the values of all ranks, with gradients.

    `mean` and `variance` are over this rank's `number` values.
    """
    if ranks.count() == 1:
        return mean, variance
    numbers = torch.as_tensor(number, dtype=torch.float64, device=mean.device).expand_as(mean)
    # One exchange for the three sums. The difference of squares cancels digits, which float64 has to spare.
    sums = torch.stack([numbers * mean, numbers * (variance + mean.double().square()), numbers])
    first, second, count = summed(sums)
    together = first / count
    return together.to(mean.dtype), (second / count - together.square()).clamp_min(0).to(variance.dtype)


@torch.no_grad()
def take_from_first(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by those of rank 0, in place. With one process they stay."""
    for tensor in tensors if ranks.count() > 1 else ():
        values = tensor.contiguous()
        if values.numel():
            dist.broadcast(_bytes(values), src=0)
            tensor.copy_(values)


def means(row: dict[str, float]) -> dict[str, float]:
    """Return the mean over the ranks of each value in a row of metrics."""
    if ranks.count() == 1:
        return row
    values = torch.tensor([*row.values()], dtype=torch.float64)
    dist.all_reduce(values)
    return dict(zip(row, (values / ranks.count()).tolist(), strict=True))


@contextmanager
def own_random(device: torch.device) -> Iterator[None]:
    """Give this rank its own random numbers within the block, for a network that draws some for its rows (dropout).

    All other numbers from torch's global generators stay equal on all ranks. These numbers are also those of a single
    process if the network draws none.
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
    """Return all rows of a tensor of any dtype. Shorter shares get a row of zeros for the exchange."""
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
