"""Where a model computes and in which precision."""

import contextlib
import functools
import json
import platform
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dfkd.system import ranks
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.system.files import cache_folder, make_folder, write_json
from dfkd.system.memory import keep_freed_memory

PAYS = 1.2
"""How many times as fast a convolution has to be in bfloat16. With AMX, and AMD's AVX512-BF16, it is about twice as
fast, on an Intel processor with AVX512-BF16 alone 0.9 times (benchmarks/speed/LOG.md): nothing lies near the limit."""


@dataclass(frozen=True)
class Place:
    """A device and the type of autocast there; torch.float32 means no autocast."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which forward passes run."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def describe(self) -> dict[str, str]:
        """What of the place decides a computed number's last bits."""
        return {"device": self.device.type, "precision": str(self.dtype).removeprefix("torch.")}


def resolve_place(device: str, precision: str) -> Place:
    """A Place from `--device auto|cpu|cuda[:N]` and `--precision auto|bf16|fp32`.

    `auto` takes a GPU where there is one, and bfloat16 where the hardware multiplies it (AVX512-BF16, AMX, GPU); on a
    processor only if it is faster, too: a short probe, whose finding is kept in the cache folder, so that a machine
    computes in one precision for good.
    Raises: RequestError for a device that torch does not know or that is not here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if ranks.count() > 1:
        device = _of_rank(device)
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise RequestError(f"--device {device!r} is not auto, cpu, cuda or cuda:N")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise RequestError(f"--device {device!r} cannot be used here ({str(error).splitlines()[0]}); try cpu") from None
    _settle(found)
    bf16 = precision == "bf16" or (precision == "auto" and _multiplies_bf16(found))
    if bf16 and precision == "auto" and found.type == "cpu":
        bf16 = ranks.from_first(_bf16_pays)
    return Place(found, torch.bfloat16 if bf16 else torch.float32)


def _of_rank(device: str) -> str:
    """The GPU of this process among those of its machine. Raises: RequestError where there is none for it."""
    if device.partition(":")[0] != "cuda":
        return device
    if device != "cuda":
        raise RequestError(f"--device {device} is one GPU for {ranks.count()} processes; give cuda: each takes its own")
    if ranks.on_machine() >= torch.cuda.device_count():
        raise RequestError(
            f"--device cuda: there are {torch.cuda.device_count()} GPUs here and more processes; start as many "
            "processes (--nproc-per-node)"
        )
    torch.cuda.set_device(ranks.on_machine())
    return f"cuda:{ranks.on_machine()}"


def _settle(device: torch.device) -> None:
    """What of the process has to be as this device needs it."""
    if device.type == "cpu":
        keep_freed_memory()
    else:  # who requests float32, or has an accuracy measured in it, gets 24 bits; gradients are summed in one order
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True


def machine(device: torch.device) -> dict[str, str | int]:
    """What a time was measured on: the processor or the GPU, torch's threads and its version."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"hardware": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor()


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public question for this; a release without these answers gets float32, which is always right
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in names)


@functools.cache
def _bf16_pays() -> bool:
    """What the cache folder says of this processor and this torch, or else the probe, whose finding is kept there."""
    path = cache_folder() / "precision.json"
    here = f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}, one thread, torch {torch.__version__}"
    found: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):
        found = {str(key): float(value) for key, value in json.loads(path.read_text(encoding="utf-8")).items()}
    if here not in found:
        found[here] = round(bf16_speed(), 3)
        with contextlib.suppress(OSError):  # a cache that cannot be written costs the probe again
            make_folder(path.parent)
            write_json(path, found)
        chosen = "bfloat16" if found[here] >= PAYS else "float32"
        say(f"precision: bfloat16 is {found[here]:g} times as fast as float32 on this processor, {chosen} is used")
    return found[here] >= PAYS


def bf16_speed(rounds: int = 7) -> float:
    """How many times as fast as in float32 a convolution is in bfloat16 here, forward and backward (0.02 s a round).

    The best of some rounds of each, in the processor time of one thread, so that other work on the machine decides
    nothing: beside two trainings on two cores the clock gave 1.1 to 5.5 where this gave 1.9 to 2.2.
    """
    # ones: drawing weights would move the random numbers of whoever resolves a place
    weight = torch.ones(32, 32, 3, 3, requires_grad=True)
    images = torch.ones(16, 32, 32, 32).to(memory_format=torch.channels_last).requires_grad_()
    best = {torch.bfloat16: float("inf"), torch.float32: float("inf")}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(rounds + 1):  # the first one warms up, and is never the best
            for dtype in best:
                started = time.thread_time()
                with Place(torch.device("cpu"), dtype).autocast():
                    answer = nn.functional.conv2d(images, weight, padding=1)
                answer.float().sum().backward()
                best[dtype] = min(best[dtype], time.thread_time() - started)
    finally:
        torch.set_num_threads(threads)
    return best[torch.float32] / best[torch.bfloat16]
