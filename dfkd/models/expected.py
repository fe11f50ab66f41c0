"""What a network says of its own input: from a file of ours, a timm configuration, or torchvision's weights."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from torch import nn

from dfkd.data.images.frame import WHOLE, Frame, Interpolation

NOTES = "dfkd.json"
"""The member of an exported program that says what its input is."""
NOTED = ("mean", "std", "image_size", "crop_pct", "interpolation", "classes")


@dataclass(frozen=True)
class Expected:
    """What is known of a network's input; None stands for what nothing says."""

    normalize: str | None = None
    frame: Frame = WHOLE
    size: int | None = None
    classes: tuple[str, ...] = ()
    """The names of its classes."""
    said_by: str | None = None
    """What says it, with its verb, where that is not a run."""


UNKNOWN = Expected()


def of_network(target: Callable[..., Any] | None, options: Mapping[str, Any], module: nn.Module) -> Expected:
    """What a network says in its `expected`, timm's `pretrained_cfg`, or the weights of a torchvision model."""
    own = getattr(module, "expected", None)
    return own if isinstance(own, Expected) else _of_weights(target, options) or _of_timm(module) or UNKNOWN


def from_safetensors(path: Path) -> Expected | None:
    """What `dfkd export` wrote into a safetensors file; None for another file."""
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
    """The notes of an exported program."""
    try:
        found = json.loads(notes or "{}")
    except (ValueError, RecursionError):
        found = {}
    return (from_notes(found) if isinstance(found, Mapping) else None) or Expected(said_by="its file says")


def from_notes(notes: Mapping[str, Any]) -> Expected | None:
    """What notes of ours say; None where they hold no normalization."""
    normalize = _spelled(notes.get("mean"), notes.get("std"))
    if normalize is None:
        return None
    frame = _frame(notes.get("crop_pct"), notes.get("interpolation"))
    named = notes.get("classes")
    listed = isinstance(named, list) and all(isinstance(name, str) for name in named)
    normalize = "none" if notes.get("normalized_inside") is True else normalize
    return Expected(normalize, frame, None, tuple(named or ()) if listed else (), "its file says")


def _of_timm(module: nn.Module) -> Expected | None:
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    if not isinstance(config, Mapping):
        return None
    frame = _frame(config.get("crop_pct"), config.get("interpolation"))
    return Expected(_spelled(config.get("mean"), config.get("std")), frame, said_by="timm says")


def _of_weights(target: Callable[..., Any] | None, options: Mapping[str, Any]) -> Expected | None:
    """`Weights.transforms()` of the weights that `weights=NAME` takes."""
    name = options.get("weights")
    if not name or target is None or not target.__module__.startswith("torchvision.models"):
        return None
    from torchvision.models import get_model_weights

    try:
        transforms = get_model_weights(target.__name__)[str(name).rpartition(".")[2]].transforms()
        size, before = transforms.crop_size[0], transforms.resize_size[0]
        mode, mean, std = transforms.interpolation.value, transforms.mean, transforms.std
    except (ValueError, KeyError, AttributeError, IndexError, TypeError):  # other transforms than those of a classifier
        return None
    return Expected(_spelled(mean, std), _frame(size / before, mode), size, said_by="its weights say")


def _frame(crop_pct: object, interpolation: object) -> Frame:
    """What is known of the crop; a ratio above 1 and other kinds of interpolation are not."""
    known = isinstance(crop_pct, (int, float)) and 0 < crop_pct <= 1
    kinds = {kind: kind for kind in get_args(Interpolation)} | {"lanczos": "bicubic"}
    return Frame(float(crop_pct) if known else 1.0, kinds.get(str(interpolation), "bilinear"))  # type: ignore[arg-type]


def size_option(module: nn.Module) -> str | None:
    """The constructor's option for the size of the input, where a network has one size."""
    package = type(module).__module__.partition(".")[0]
    if package == "timm" and hasattr(getattr(module, "patch_embed", None), "img_size"):
        return "img_size"
    return "image_size" if package in ("dfkd", "torchvision") and hasattr(module, "image_size") else None


def _spelled(mean: object, std: object) -> str | None:
    """A `--normalize` text; None where the values are no lists of numbers."""
    text = ""
    for values in (mean, std):
        if not isinstance(values, (list, tuple)) or not values or not all(type(v) in (int, float) for v in values):
            return None
        spelled = [repr(float(v)) for v in values]
        text += "/" * bool(text) + ",".join(spelled[:1] if len({*spelled}) == 1 else spelled)
    return text if re.fullmatch(r"[\d.,/e+-]+", text) else None
