"""The input that a network expects, as stated by a file of `dfkd`, a timm configuration or torchvision's weights."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from torch import nn

from dfkd.config.stages.shared import Interpolation
from dfkd.data.images.frame import WHOLE, Frame

NOTES = "dfkd.json"
"""Member of an exported program's archive that describes the input."""
NOTED = ("mean", "std", "image_size", "crop_pct", "interpolation", "classes")
"""Keys of the description that are read."""


@dataclass(frozen=True)
class Expected:
    """What is known about a network's input. None stands for an unknown value."""

    normalize: str | None = None
    frame: Frame = WHOLE
    size: int | None = None
    classes: tuple[str, ...] = ()
    """Names of the classes, if known."""
    said_by: str | None = None
    """Subject and verb for messages, such as `timm says`. None for a run."""


UNKNOWN = Expected()


def of_network(target: Callable[..., Any] | None, options: Mapping[str, Any], module: nn.Module) -> Expected:
    """Return the input that a network's `expected`, timm's `pretrained_cfg` or torchvision's weights describe."""
    own = getattr(module, "expected", None)
    return own if isinstance(own, Expected) else _of_weights(target, options) or _of_timm(module) or UNKNOWN


def from_safetensors(path: Path) -> Expected | None:
    """Read the description that `dfkd export` wrote into a safetensors file; None for another file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
    except (SafetensorError, OSError, ValueError):
        return None
    if "architecture" not in notes:
        return None
    try:
        return from_notes({name: json.loads(notes[name]) for name in NOTED if name in notes})
    except (ValueError, RecursionError):
        return None


def from_program(notes: str | bytes) -> Expected:
    """Parse the description in an exported program."""
    try:
        found = json.loads(notes or "{}")
    except (ValueError, RecursionError):
        found = {}
    return (from_notes(found) if isinstance(found, Mapping) else None) or Expected(said_by="its file says")


def from_notes(notes: Mapping[str, Any]) -> Expected | None:
    """Convert a description of `dfkd export`; None without a valid normalization."""
    normalize = _spelled(notes.get("mean"), notes.get("std"))
    if normalize is None:
        return None
    frame = _frame(notes.get("crop_pct"), notes.get("interpolation"))
    named = notes.get("classes")
    listed = isinstance(named, list) and all(isinstance(name, str) for name in named)
    normalize = "none" if notes.get("normalized_inside") is True else normalize
    size = notes.get("image_size")
    known = size if type(size) is int and size > 0 else None
    return Expected(normalize, frame, known, tuple(named or ()) if listed else (), "its file says")


def _of_timm(module: nn.Module) -> Expected | None:
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    if not isinstance(config, Mapping):
        return None
    frame = _frame(config.get("crop_pct"), config.get("interpolation"))
    return Expected(_spelled(config.get("mean"), config.get("std")), frame, said_by="timm says")


def _of_weights(target: Callable[..., Any] | None, options: Mapping[str, Any]) -> Expected | None:
    """Return the input that `Weights.transforms()` describes, for the weights that `weights=NAME` names."""
    name = options.get("weights")
    if not name or target is None or not target.__module__.startswith("torchvision.models"):
        return None
    from torchvision.models import get_model_weights

    try:
        transforms = get_model_weights(target.__name__)[str(name).rpartition(".")[2]].transforms()
        size, before = transforms.crop_size[0], transforms.resize_size[0]
        mode, mean, std = transforms.interpolation.value, transforms.mean, transforms.std
    except (ValueError, KeyError, AttributeError, IndexError, TypeError):  # not the transforms of a classifier
        return None
    return Expected(_spelled(mean, std), _frame(size / before, mode), size, said_by="its weights say")


def _frame(crop_pct: object, interpolation: object) -> Frame:
    """Return the known part of the frame. A ratio above 1 or an unknown interpolation is replaced by the default."""
    known = isinstance(crop_pct, (int, float)) and 0 < crop_pct <= 1
    kinds = {kind: kind for kind in get_args(Interpolation)} | {"lanczos": "bicubic"}
    return Frame(float(crop_pct) if known else 1.0, kinds.get(str(interpolation), "bilinear"))  # type: ignore[arg-type]


def size_option(module: nn.Module) -> str | None:
    """Return the constructor's option for the input size, if the network accepts only one size."""
    package = type(module).__module__.partition(".")[0]
    if package == "timm" and hasattr(getattr(module, "patch_embed", None), "img_size"):
        return "img_size"
    return "image_size" if package in ("dfkd", "torchvision") and hasattr(module, "image_size") else None


def _spelled(mean: object, std: object) -> str | None:
    """Format mean and standard deviation as a `--normalize` text; None unless they are lists of numbers."""
    text = ""
    for values in (mean, std):
        if not isinstance(values, (list, tuple)) or not values or not all(type(v) in (int, float) for v in values):
            return None
        spelled = [repr(float(v)) for v in values]
        text += "/" * bool(text) + ",".join(spelled[:1] if len({*spelled}) == 1 else spelled)
    return text if re.fullmatch(r"[\d.,/e+-]+", text) else None
