"""The text of a MODEL -> the network that it names, before anything runs through it."""

import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.formats.run_folder import CONFIG, WEIGHTS, finished_weights
from dfkd.models import DEFAULT_IMAGE_SIZE
from dfkd.models.expected import NOTES, from_program, from_safetensors, from_timm
from dfkd.models.program import check_evaluates, check_program
from dfkd.models.weights import fit_prefix, load_state, load_weights, names_weights, read_state_dict, require_file
from dfkd.system.checksums import unsealed
from dfkd.system.components import Component, Kind
from dfkd.system.errors import RequestError
from dfkd.system.files import hash_file, user_path
from dfkd.system.names import Named
from dfkd.system.portable import expand

MODEL = Kind("model", ("dfkd.models", "torchvision.models"))
_KNOWN_PACKAGES = ("dfkd", "torchvision", "timm")  # their constructors bring weights only where they are asked to


@dataclass(frozen=True)
class Found:
    """What a MODEL text leads to, before anything runs through it."""

    spec: str
    module: nn.Module
    named: Named
    class_key: str | None = None
    """The constructor's parameter for the class count."""
    channel_key: str | None = None
    channels: int | None = None
    image_size: int | None = None
    normalize: str | None = None
    normalize_of: str | None = None
    """What says the normalization, where that is not a run."""
    code: str | None = None
    has_weights: bool | None = True
    may_bring_weights: bool = False
    """Whether the constructor is code that may load weights unasked."""


def find_model(text: str, classes: int | None, channels: int | None) -> Found:
    """Read or build it. Counts that neither the text nor the weights say are those given, of a student's teacher.

    Raises: RequestError as `dfkd.models.load.load_model`.
    """
    path = user_path(text)
    if (path / CONFIG).is_file():
        return _from_run(path)
    if path.suffix == ".pt2" and ("@" not in text or path.is_file()):
        return _from_export(path)
    if path.suffix == ".onnx":
        raise RequestError(f"{text!r}: ONNX is written and not read; name the RUN, or export it as .pt2 too")
    if "@" not in text and (names_weights(text) or ("/" in text and path.is_file())):
        raise RequestError(f"{text!r} names weights without their architecture: NAME[:key=value,...]@{text}")
    if "/" in text.partition("@")[0].partition(":")[0]:
        raise RequestError(f"{text!r} is not a finished RUN (no {CONFIG} there), nor a .pt2 file, nor a model's name")
    return _from_name(text, classes, channels)


def check_name(text: str) -> None:
    """Raises: RequestError for a MODEL that is not there and is no known NAME. Folders and files may be yet to come."""
    name = text.partition("@")[0]
    if name == text and names_weights(text):  # weights without their architecture, which must not be imported
        return
    if "/" not in name.partition(":")[0] and not user_path(text).exists():
        MODEL.look_up(name)


def _from_run(path: Path) -> Found:
    """The student of a finished run: `[model]` of its config.toml and student.safetensors."""
    try:
        table: dict[str, Any] = unsealed(tomllib.loads((path / CONFIG).read_text(encoding="utf-8")))["model"]
        architecture: str = table["architecture"]
    except (ValueError, KeyError, TypeError) as error:  # neither TOML nor UTF-8, changed, or without the table
        raise RequestError(f"{str(path / CONFIG)!r} is not the configuration of a RUN: {error}") from error
    weights = path / WEIGHTS
    if not weights.is_file():
        raise RequestError(f"run {str(path)!r} is not finished (no {WEIGHTS}): start its dfkd distill again")
    found = _from_name(expand(architecture), None, None)
    load_weights(found.module, finished_weights(path))
    size = table.get("image_size", found.image_size)
    return replace(
        found,
        spec=path.resolve().name,
        image_size=size,
        normalize=table.get("normalize"),
        normalize_of=None,
        has_weights=True,
    )


def _from_export(path: Path) -> Found:
    """A torch.export program; unflattened, because then modules keep their paths, for taps, and train() is allowed."""
    require_file(path, (".pt2",))
    check_program(path)
    try:
        with warnings.catch_warnings():  # torch 2.11 warns of its own reader
            warnings.simplefilter("ignore")
            notes = {NOTES: ""}
            program = torch.export.load(path, extra_files=notes)
            module = torch.export.unflatten(program)
    except Exception as error:  # a damaged file can raise anything at all from the reader
        raise RequestError(f"{str(path)!r} cannot be read: {str(error).partition(chr(10))[0]}") from error
    check_evaluates(program, path)
    inputs = program.graph_signature.user_inputs
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    if len(values) != 1 or not isinstance(values[0], Tensor) or values[0].ndim != 4:
        raise RequestError(f"{str(path)!r} takes other than one input [batch, channels, height, width]")
    batch, channels, height, width = (n if isinstance(n, int) else None for n in values[0].shape)
    if batch is not None:
        mend = "export it with dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)"
        raise RequestError(f"{str(path)!r} takes batches of {batch} alone; {mend}")
    if height != width:
        raise RequestError(f"{str(path)!r} takes images of {height}x{width} pixels; they must be square")
    return Found(
        path.name,
        module,
        Named(path.name),
        channels=channels,
        image_size=height,
        normalize=from_program(notes[NOTES]),
        normalize_of="its file",
        code=hash_file(path),
    )


def _from_name(text: str, classes: int | None, channels: int | None) -> Found:
    architecture, at, weights = text.partition("@")
    if at and not weights:
        raise RequestError(f"{text!r} names no weights after the @")
    asked = MODEL.look_up(architecture)
    if asked.named.numbers:
        number = asked.named.numbers[0]
        raise RequestError(f"in model {architecture!r}, {number:g} is for no parameter: write key=value")
    if not asked.is_own:
        asked = replace(asked, named=replace(asked.named, name=asked.target.__name__))
    class_key, channel_key = _count_keys(asked)
    teachers = {key: n for key, n in ((class_key, classes), (channel_key, channels)) if key and n is not None}
    used = asked.preset(**teachers)
    module = _construct(used)
    if weights:
        path = user_path(weights)
        state = read_state_dict(path, module)
        seen = _counts_in(fit_prefix(state, module), module, class_key, channel_key)
        if seen.keys() - asked.options.keys():
            used = used.set(**(seen | dict(asked.options)))
            module = _construct(used)
        load_state(module, state, path)
    stored = from_safetensors(path) if weights else None
    spec = asked.text + (f"@{Path(weights).name}" if weights else "")
    size = _made_for(used, module)
    return Found(
        spec,
        module,
        used.named,
        class_key,
        channel_key,
        used.options.get(channel_key or ""),
        size,
        stored or from_timm(module),
        "its file" if stored else "timm",
        code=asked.code,
        has_weights=True if weights else None if asked.is_own else False,
        may_bring_weights=asked.target.__module__.partition(".")[0] not in _KNOWN_PACKAGES,
    )


def _construct(asked: Component) -> nn.Module:
    try:
        module = asked.build()
    except RequestError:
        raise
    except Exception as error:  # whatever torchvision's constructors say to options that they cannot use
        raise RequestError(f"model {asked.text!r} cannot be built: {error}") from error
    if not isinstance(module, nn.Module):
        raise RequestError(f"model {asked.name!r} built a {type(module).__name__}, not a torch.nn.Module")
    return module.to("cpu", torch.float32).eval()


def _count_keys(asked: Component) -> tuple[str | None, str | None]:
    """The names of the constructor's parameters for the class count and the input channels, where it has them."""
    parameters = asked.parameters
    taken = {parameter.name for parameter in parameters} | asked.options.keys()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        # what **kwargs stands for cannot be seen; these two packages are known
        passed_on = {"torchvision": {"num_classes"}, "timm": {"num_classes", "in_chans"}}
        taken |= passed_on.get(asked.target.__module__.partition(".")[0], set())
    return (
        next((key for key in ("num_classes",) if key in taken), None),
        next((key for key in ("in_channels", "in_chans") if key in taken), None),
    )


def _counts_in(
    state: Mapping[str, Tensor], module: nn.Module, class_key: str | None, channel_key: str | None
) -> dict[str, int]:
    """The class and channel counts in which the weights differ from the module, by the constructor's names."""
    layers = list(module.named_modules())
    convolutions = [name for name, layer in layers if isinstance(layer, nn.Conv2d)]
    classifiers = [name for name, layer in layers if isinstance(layer, nn.Linear)] or convolutions
    own, counts = module.state_dict(), {}
    for key, names, dimension in ((class_key, classifiers[-1:], 0), (channel_key, convolutions[:1], 1)):
        for weight in (f"{name}.weight" for name in names):
            if key and weight in state and state[weight].ndim == own[weight].ndim:
                count = state[weight].shape[dimension]
                if count != own[weight].shape[dimension]:
                    counts[key] = count
    return counts


def _made_for(used: Component, module: nn.Module) -> int | None:
    """The side of the images that an architecture is made for, or None."""
    told = used.options.get("image_size", used.options.get("img_size"))
    if isinstance(told, int):
        return told
    package = used.target.__module__
    if package.startswith("dfkd.models"):
        return DEFAULT_IMAGE_SIZE
    if package.startswith("torchvision.models"):
        return 224
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)  # timm's
    return int(config["input_size"][-1]) if isinstance(config, Mapping) and "input_size" in config else None
