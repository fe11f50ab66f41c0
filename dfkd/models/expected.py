"""What a network says of its own input: normalization and size, from a file of ours or a timm configuration."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from torch import nn

NOTES = "dfkd.json"
"""The member of an exported program that says how its input is normalized."""


def from_safetensors(path: Path) -> str | None:
    """The normalization that `dfkd export` wrote into a safetensors file; None for another file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
    except (SafetensorError, OSError, ValueError):
        return None
    try:
        return _spelled(json.loads(notes["mean"]), json.loads(notes["std"])) if "architecture" in notes else None
    except (KeyError, ValueError, RecursionError):
        return None


def from_program(notes: str | bytes) -> str | None:
    """The normalization in the notes of an exported program; None where they say nothing."""
    try:
        found = json.loads(notes or "{}")
        return _spelled(found.get("mean"), found.get("std")) if isinstance(found, Mapping) else None
    except (ValueError, RecursionError):
        return None


def from_timm(module: nn.Module) -> str | None:
    """The normalization of timm's `pretrained_cfg`; None for another network."""
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    return _spelled(config.get("mean"), config.get("std")) if isinstance(config, Mapping) else None


def size_option(module: nn.Module) -> str | None:
    """The constructor's option for the size of the input, where a network has one size."""
    package = type(module).__module__.partition(".")[0]
    if package == "timm" and hasattr(getattr(module, "patch_embed", None), "img_size"):
        return "img_size"
    return "image_size" if package == "torchvision" and hasattr(module, "image_size") else None


def _spelled(mean: object, std: object) -> str | None:
    """A `--normalize` text; None where the values are no lists of numbers."""
    text = ""
    for values in (mean, std):
        if not isinstance(values, (list, tuple)) or not values or not all(type(v) in (int, float) for v in values):
            return None
        spelled = [repr(float(v)) for v in values]
        text += "/" * bool(text) + ",".join(spelled[:1] if len({*spelled}) == 1 else spelled)
    return text if re.fullmatch(r"[\d.,/e+-]+", text) else None
