"""Process groups of torchrun: the ranks of one command, their communication, and their common end.

Ranks are numbered from 0. Rank 0 writes, prints and decides; `from_first` sends its decisions to the other ranks.
Without torchrun, and with one process, every function here returns at once.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from dfkd.system.errors import RequestError
from dfkd.system.signals import StopRequest

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import Work

MEETING = timedelta(minutes=30)
"""Longest wait for the other ranks to start, as in PyTorch. A rank that never starts closes no connection."""
TIMEOUT = timedelta(hours=12)
"""Longest wait for another rank. The end of a rank is noticed at once, because its connections close."""
SAVED = "what was saved is kept; give the same command again to resume"
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket Timeout")
"""Parts of gloo's error messages for a process that has ended."""
_PDEATHSIG = 1
"""Linux's number of the request for a signal at the parent's end (man 2 prctl)."""
T = TypeVar("T")


@dataclass(frozen=True)
class _Ranks:
    """Position of this process among the processes of its command."""

    rank: int = 0
    count: int = 1
    on_machine: int = 0
    """Number of this process among those of its machine, from 0."""


_ranks = _Ranks()


class Ended(RequestError):
    """Error that ends this rank after another rank has reported the cause."""


def launched() -> bool:
    """Return whether a launcher started this process as one of several. torchrun's environment variables tell."""
    return all(name in os.environ for name in ("RANK", "MASTER_ADDR", "MASTER_PORT")) and _number("WORLD_SIZE", 1) > 1


def quiet() -> bool:
    """Return whether this process leaves printing to rank 0."""
    return launched() and _number("RANK", 0) > 0


def named() -> str:
    """Return the prefix that names this rank in messages, or an empty text for a single process."""
    return f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}: " if launched() else ""


def rank() -> int:
    """Return the rank of this process, from 0."""
    return _ranks.rank


def count() -> int:
    """Return the number of ranks."""
    return _ranks.count


def on_machine() -> int:
    """Return the number of this process on its machine, which is the number of its GPU."""
    return _ranks.on_machine


def first() -> bool:
    """Return whether this is rank 0, which writes and prints."""
    return _ranks.rank == 0


@contextmanager
def joined() -> Iterator[None]:
    """Join the process group of the launcher while the block runs.

    Raises: Ended if another rank has reported the cause. RequestError if a rank has ended without a message.
    """
    import torch
    import torch.distributed as dist

    global _ranks
    _end_with_launcher()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        store, number, size = next(dist.rendezvous("env://", timeout=MEETING))
        store = dist.PrefixStore(_attempt(), store)
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        where = f"MASTER_ADDR={os.environ['MASTER_ADDR']} and MASTER_PORT={os.environ['MASTER_PORT']}"
        raise RequestError(f"the other ranks are not found by {where}: {error}") from error
    _ranks = _Ranks(number, size, _number("LOCAL_RANK", number))
    try:
        yield
        meet()
    except KeyboardInterrupt as interrupt:  # from the launcher, if another rank has ended
        if _told(store, 0):
            raise Ended("another rank has said why") from interrupt
        raise
    except Exception as error:
        if _told(store, 1) != 1:
            raise Ended("another rank has said why") from error
        if _is_lost(error):
            raise RequestError(f"another rank has ended without a message; {SAVED}") from error
        error.add_note(named())
        raise
    finally:
        _ranks = _Ranks()
    dist.destroy_process_group()


def _end_with_launcher() -> None:
    """Let Linux send SIGTERM to this process when torchrun ends. A killed torchrun does not end its ranks itself.

    Ranks of other launchers go on: their parent may end before them.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGTERM)


def _attempt() -> str:
    """Return a prefix for the store that names torchrun's restart.

    torchrun's store keeps the addresses of killed processes over a restart. On several machines, each machine counts
    restarts for itself, and torchrun makes a new store.
    """
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if _number("GROUP_WORLD_SIZE", 1) == 1 else "0"
    return f"dfkd-{restarts}"


def _told(store: Any, more: int) -> int | None:
    """Add `more` to the number of ranks that report an error, and return the sum.

    The result is None if the store does not answer any more.
    """
    from torch.distributed import PrefixStore

    try:
        return int(PrefixStore("dfkd", store).add("ended", more))
    except RuntimeError:  # the store ended with rank 0, unless the launcher keeps it, as torchrun does
        return None


def _is_lost(error: BaseException) -> bool:
    """Return whether the end of another process caused an error."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RuntimeError) and any(text in str(seen) for text in _LOST):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextmanager
def apart() -> Iterator[None]:
    """Make this process work as a single one within the block, so that rank 0 does not wait for other ranks."""
    global _ranks
    before, _ranks = _ranks, _Ranks(on_machine=_ranks.on_machine)
    try:
        yield
    finally:
        _ranks = before


def meet() -> None:
    """Wait until every rank has reached this call."""
    if count() > 1:
        import torch
        import torch.distributed as dist

        dist.all_reduce(torch.ones(1))


def from_first(make: Callable[[], T]) -> T:
    """Return rank 0's result of `make` on every rank.

    Only rank 0 calls `make`, which must not wait for other ranks.
    """
    if count() == 1:
        return make()
    import torch
    import torch.distributed as dist

    made: list[Any] = [None]
    if first():
        with apart():
            made = [make()]
    dist.broadcast_object_list(made, src=0, device=torch.device("cpu"))
    value: T = made[0]
    return value


def on_first(make: Callable[[], T]) -> T | None:
    """Call `make` on rank 0 and return its result there. The other ranks wait, and return None."""
    made: list[T] = []
    from_first(lambda: made.append(make()))
    return made[0] if made else None


@contextmanager
def held(lock: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Hold a lock for all ranks while the block runs. Rank 0 acquires the lock."""
    if first():
        with lock():
            meet()
            yield
    else:
        meet()
        yield


def dealt(things: Sequence[T]) -> Sequence[T]:
    """Return this rank's share of a sequence whose items are processed one by one."""
    return things[rank() :: count()]


class Vote:
    """Agreement of all ranks, after the same step, on whether a signal has reached any of them.

    The all-reduce runs while the step is computed.
    """

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop
        self._cast: tuple[Tensor, Work] | None = None

    def cast(self) -> None:
        """Send the signal that this rank knows to the other ranks, before a step."""
        if count() > 1:
            import torch
            import torch.distributed as dist

            number = torch.tensor([self._stop.signal or 0])
            work = dist.all_reduce(number, op=dist.ReduceOp.MAX, async_op=True)
            assert work is not None
            self._cast = number, work

    def result(self) -> int | None:
        """Return the signal's number or None, after a step. With one process, return the present state."""
        if self._cast is None:
            return self._stop.signal
        number, work = self._cast
        work.wait()
        self._cast = None
        return int(number) or None


def check_same(what: dict[str, Any], differences: Callable[[Any, Any], Sequence[str]]) -> None:
    """Raise RequestError if this rank resolves the request differently from rank 0."""
    different = differences(from_first(lambda: what), what) if count() > 1 else ()
    if different:
        raise RequestError(
            f"this rank has another request than rank 0: {'; '.join(different)}; give every machine the same files "
            "and versions"
        )


def refuse(command: str, hint: str) -> None:
    """Raise RequestError if a launcher has started several processes for a command that runs in one process."""
    if launched():
        raise RequestError(
            f"{command} runs in one process, and WORLD_SIZE={os.environ['WORLD_SIZE']} starts several; {hint}"
        )


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else default
