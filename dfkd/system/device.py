"""Device and precision of a model's computations."""

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
from dfkd.system.errors import RequestError, first_line
from dfkd.system.files import cache_folder, make_folder, write_json
from dfkd.system.memory import keep_freed_memory

PAYS = 1.2
"""Smallest speed-up of a convolution by bfloat16 at which bfloat16 is used on a CPU.

The speed-up is about 2 with AMX and with AMD's AVX512-BF16. On an Intel processor with AVX512-BF16 alone it is 0.9. No
measurement is near the limit (benchmarks/speed/LOG.md).
"""


@dataclass(frozen=True)
class Place:
    """A device and its autocast dtype. torch.float32 turns autocast off."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context for forward passes."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def describe(self) -> dict[str, str]:
        """Return device type and precision, which decide a computed number's last bits."""
        return {"device": self.device.type, "precision": str(self.dtype).removeprefix("torch.")}


def resolve_place(device: str, precision: str) -> Place:
    """Return the Place for `--device auto|cpu|cuda[:N]` and `--precision auto|bf16|fp32`.

    The device `auto` is a GPU if there is one. The precision `auto` is bfloat16 if the hardware multiplies it
    (AVX512-BF16, AMX, GPU). On a CPU, bfloat16 must also be faster in a short probe. The cache folder keeps the probe's
    result, so that a machine always computes in the same precision.
    Raises: RequestError for a device that torch does not know or that the machine does not have.
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
        raise RequestError(f"--device {device!r} cannot be used here ({first_line(error)}); try cpu") from None
    _settle(found)
    bf16 = precision == "bf16" or (precision == "auto" and _multiplies_bf16(found))
    if bf16 and precision == "auto" and found.type == "cpu":
        bf16 = ranks.from_first(_bf16_pays)
    return Place(found, torch.bfloat16 if bf16 else torch.float32)


def _of_rank(device: str) -> str:
    """Return the GPU of this rank on its machine. Raises: RequestError if there is none for the rank."""
    if device.partition(":")[0] != "cuda":
        return device
    if device != "cuda":
        raise RequestError(
            f"--device {device} is one GPU for {ranks.count()} processes; give cuda, and each takes its own"
        )
    if ranks.on_machine() >= torch.cuda.device_count():
        raise RequestError(
            f"--device cuda: this machine has {torch.cuda.device_count()} GPUs and more processes; start one process "
            "for each GPU (--nproc-per-node)"
        )
    torch.cuda.set_device(ranks.on_machine())
    return f"cuda:{ranks.on_machine()}"


def _settle(device: torch.device) -> None:
    """Set the process-wide options that a device needs."""
    if device.type == "cpu":
        keep_freed_memory()
    else:  # float32 must have 24 bits of precision, and gradients must be summed in a fixed order
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True


def machine(device: torch.device) -> dict[str, str | int]:
    """Return the hardware, the number of threads and torch's version, for reports of measured times."""
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
    # torch has no public query. A release without these functions gets float32, which is always correct.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in names)


@functools.cache
def _bf16_pays() -> bool:
    """Return whether bfloat16 is fast enough here, by the cache folder or else by a probe, which is then cached."""
    path = cache_folder() / "precision.json"
    here = f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}, one thread, torch {torch.__version__}"
    found: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        found = {str(key): float(value) for key, value in json.loads(path.read_text(encoding="utf-8")).items()}
    if here not in found:
        found[here] = round(bf16_speed(), 3)
        with contextlib.suppress(OSError):  # without a writable cache, the next command repeats the probe
            make_folder(path.parent)
            write_json(path, found)
        chosen = "bfloat16" if found[here] >= PAYS else "float32"
        say(f"precision: bfloat16 is {found[here]:g} times as fast as float32 on this processor, {chosen} is used")
    return found[here] >= PAYS


def bf16_speed(rounds: int = 7) -> float:
    """Return the speed-up of a convolution, forward and backward, by bfloat16 over float32 on this CPU.

    The function takes the best of several rounds of 0.02 s for each dtype. Times are processor times of one thread,
    because other work on the machine affects wall-clock times. Beside two trainings on two cores, wall-clock times gave
    speed-ups from 1.1 to 5.5, and processor times from 1.9 to 2.2.
    """
    # ones, because random weights would change the caller's random state
    weight = torch.ones(32, 32, 3, 3, requires_grad=True)
    images = torch.ones(16, 32, 32, 32).to(memory_format=torch.channels_last).requires_grad_()
    best = {torch.bfloat16: float("inf"), torch.float32: float("inf")}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(rounds + 1):  # the first round is a warm-up, which is never the best
            for dtype in best:
                started = time.thread_time()
                with Place(torch.device("cpu"), dtype).autocast():
                    answer = nn.functional.conv2d(images, weight, padding=1)
                answer.float().sum().backward()
                best[dtype] = min(best[dtype], time.thread_time() - started)
    finally:
        torch.set_num_threads(threads)
    return best[torch.float32] / best[torch.bfloat16]
