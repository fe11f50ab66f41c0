"""Where a model computes and in which precision."""

import platform
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from dfkd.errors import RequestError


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

    `auto` takes a GPU where there is one, and bfloat16 where the hardware multiplies it (AVX512-BF16, AMX, GPU).
    Raises: RequestError for a device that torch does not know or that is not here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise RequestError(f"--device {device!r} cannot be used here ({str(error).splitlines()[0]}); try cpu") from None
    bf16 = precision == "bf16" or (precision == "auto" and _multiplies_bf16(found))
    return Place(found, torch.bfloat16 if bf16 else torch.float32)


def machine(device: torch.device) -> dict[str, str | int]:
    """What a time was measured on: the processor or the GPU, torch's threads and its version."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor or platform.processor()
    return {"hardware": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public question for this; a release without these answers gets float32, which is always right
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in names)
