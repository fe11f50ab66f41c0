"""The memory of this process and of its GPU: what is kept for the next layer, and what was held at the most."""

import contextlib
import ctypes
import functools
import re
import sys
from pathlib import Path
from typing import Any

import torch


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc keep the memory that a layer frees for the next one.

    By itself it requests every block above 32 MiB anew, which is zeroed page by page: a third of the time of
    a forward pass whose maps are as large (benchmarks/speed/LOG.md). Other C libraries are left as they are.
    """
    trim, above = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return
    # older releases refuse more than 32 MiB; setting the other option first would fix the limit where it stands then
    if any(mallopt(above, size) == 1 for size in (2**31 - 1, 2**25)):
        mallopt(trim, 2**31 - 1)


def forget_peak_memory(device: torch.device) -> None:
    """Have `peak_memory_bytes` begin at what is in use now, for a process with several runs; on Linux, and of a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)  # what is kept for the next layer was another run's
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: of the GPU where the run has one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would begin with the size of the process that started this one
        kilobytes = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        if kilobytes:
            return 1024 * int(kilobytes[1])
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # the same field, in bytes there
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _of_glibc(name: str) -> Any:
    """A function of the C library, or None where that is another."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
