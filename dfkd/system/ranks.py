"""The processes that torchrun starts for one command: which one this is, what they tell each other, how they end.

The processes of a command are called ranks, from 0. Rank 0 writes, prints and decides; what it decides reaches the
others by `from_first`. Without torchrun, and with one process, every function here returns at once.
"""

import os
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

TIMEOUT = timedelta(hours=12)
"""For which a rank waits for another one. A rank that has ended is noticed at once: its connections are closed."""
SAVED = "what was saved is kept; give the same command again to resume"
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket Timeout")
"""What gloo says where the other process has ended."""
T = TypeVar("T")


@dataclass(frozen=True)
class _Ranks:
    """This process among those of its command."""

    rank: int = 0
    count: int = 1
    on_machine: int = 0
    """Its number among the processes of this machine."""


_ranks = _Ranks()


class Ended(RequestError):
    """The command ends for what another rank has told already."""


def launched() -> bool:
    """Whether this process is one of several that a launcher has started, by the variables that torchrun sets."""
    return all(name in os.environ for name in ("RANK", "MASTER_ADDR", "MASTER_PORT")) and _number("WORLD_SIZE", 1) > 1


def quiet() -> bool:
    """Whether another process prints for this one."""
    return launched() and _number("RANK", 0) > 0


def named() -> str:
    """This process in the messages of a command that has several; empty for one."""
    return f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}: " if launched() else ""


def rank() -> int:
    """The number of this process, from 0."""
    return _ranks.rank


def count() -> int:
    """How many processes work together."""
    return _ranks.count


def on_machine() -> int:
    """The number of this process among those of its machine: the GPU that it uses."""
    return _ranks.on_machine


def first() -> bool:
    """Whether this process writes and prints."""
    return _ranks.rank == 0


@contextmanager
def joined() -> Iterator[None]:
    """Work together with the other processes of the launcher while the block runs.

    Raises: Ended, where another rank has told why. RequestError where one has ended without a word.
    """
    import torch
    import torch.distributed as dist

    global _ranks
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        store, number, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
        store = dist.PrefixStore(_attempt(), store)
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        where = f"MASTER_ADDR={os.environ['MASTER_ADDR']} and MASTER_PORT={os.environ['MASTER_PORT']}"
        raise RequestError(f"the other ranks are not found by {where}: {error}") from error
    _ranks = _Ranks(number, size, _number("LOCAL_RANK", number))
    try:
        yield
        meet()
    except KeyboardInterrupt as interrupt:  # the launcher's, where another rank has ended
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


def _attempt() -> str:
    """Of which start of torchrun this process is: its store still has the addresses of processes that were killed.

    Several machines count their restarts each for themselves, and get a new store.
    """
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if _number("GROUP_WORLD_SIZE", 1) == 1 else "0"
    return f"dfkd-{restarts}"


def _told(store: Any, more: int) -> int | None:
    """How many ranks have an error to tell, with so many more of this one; None where that cannot be known any more."""
    from torch.distributed import PrefixStore

    try:
        return int(PrefixStore("dfkd", store).add("ended", more))
    except RuntimeError:  # the store has gone with rank 0, where that keeps it: with torchrun the launcher does
        return None


def _is_lost(error: BaseException) -> bool:
    """Whether the error, or what led to it, is that another process has ended."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RuntimeError) and any(text in str(seen) for text in _LOST):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextmanager
def apart() -> Iterator[None]:
    """Within the block this process works as if it were the only one: what rank 0 does alone waits for no other."""
    global _ranks
    before, _ranks = _ranks, _Ranks(on_machine=_ranks.on_machine)
    try:
        yield
    finally:
        _ranks = before


def meet() -> None:
    """Wait until every rank is here."""
    if count() > 1:
        import torch
        import torch.distributed as dist

        dist.all_reduce(torch.ones(1))


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives on rank 0, on every rank; it is called there alone, and must not wait for the others."""
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
    """What `make` gives on rank 0; the others wait for its end, and get None."""
    made: list[T] = []
    from_first(lambda: made.append(make()))
    return made[0] if made else None


@contextmanager
def held(lock: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """A lock that rank 0 holds for all while the block runs."""
    if first():
        with lock():
            meet()
            yield
    else:
        meet()
        yield


def dealt(things: Sequence[T]) -> Sequence[T]:
    """The share of this rank of things that are done one by one."""
    return things[rank() :: count()]


class Vote:
    """Whether a signal has reached any rank, known to all of them after the same step.

    The question goes round while the step is computed.
    """

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop
        self._cast: tuple[Tensor, Work] | None = None

    def cast(self) -> None:
        """Before a step: say what is known here."""
        if count() > 1:
            import torch
            import torch.distributed as dist

            number = torch.tensor([self._stop.signal or 0])
            work = dist.all_reduce(number, op=dist.ReduceOp.MAX, async_op=True)
            assert work is not None
            self._cast = number, work

    def result(self) -> int | None:
        """After a step: the number of the signal, or None; with one process what is known now."""
        if self._cast is None:
            return self._stop.signal
        number, work = self._cast
        work.wait()
        self._cast = None
        return int(number) or None


def check_same(what: dict[str, Any], differences: Callable[[Any, Any], Sequence[str]]) -> None:
    """Raises: RequestError where this rank resolves the request to something else than rank 0 does."""
    different = differences(from_first(lambda: what), what) if count() > 1 else ()
    if different:
        raise RequestError(
            f"this rank has another request than rank 0: {'; '.join(different)}; give every machine the same files "
            "and versions"
        )


def refuse(command: str, hint: str) -> None:
    """Raises: RequestError for a command that runs in one process, where a launcher has started several."""
    if launched():
        raise RequestError(
            f"{command} runs in one process, and WORLD_SIZE={os.environ['WORLD_SIZE']} starts several; {hint}"
        )


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else default
