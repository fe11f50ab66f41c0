"""Memory of this process and of its GPU: reuse of freed blocks, and peak usage."""

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
    """Make glibc keep freed memory for the next layer.

    By default glibc requests every block above 32 MiB from the kernel, which zeroes each page. For forward passes with
    feature maps of this size, zeroing takes a third of the time (benchmarks/speed/LOG.md). Other C libraries are
    unaffected.
    """
    trim, above = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return
    # Older releases refuse more than 32 MiB. Setting the trim threshold first would freeze the mmap threshold.
    if any(mallopt(above, size) == 1 for size in (2**31 - 1, 2**25)):
        mallopt(trim, 2**31 - 1)


def forget_peak_memory(device: torch.device) -> None:
    """Reset the peak memory to the memory in use now, for a process with several runs.

    The function works for GPUs, and on Linux for the process.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)  # release the memory that was kept for the previous run's layers
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory in bytes so far: of the GPU if the run uses one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage begins with the size of the parent process
        kilobytes = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        if kilobytes:
            return 1024 * int(kilobytes[1])
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # the field is in bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _of_glibc(name: str) -> Any:
    """Return a function of the C library, or None if the library does not have it."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
