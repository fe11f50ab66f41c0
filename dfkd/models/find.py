"""Lookup of the network that a MODEL text names, before its first forward pass."""

import importlib.util
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dfkd.data.images.frame import Frame
from dfkd.formats.run_records import CONFIG, WEIGHTS, finished_weights, read_request
from dfkd.models.construct import construct
from dfkd.models.counts import SIZE, count_keys, counts_in, made_for
from dfkd.models.expected import NOTES, UNKNOWN, Expected, from_program, from_safetensors, of_network
from dfkd.models.load_weights import load_state, load_weights
from dfkd.models.new_classifier import WEIGHT_OPTIONS, keep_layers, loads_weights
from dfkd.models.program import check_evaluates, check_program, unflattened
from dfkd.models.state import fit_prefix
from dfkd.models.weights import check_there as weights_there
from dfkd.models.weights import names_weights, read_state_dict, require_file
from dfkd.system.components import Component, Kind
from dfkd.system.console import say
from dfkd.system.errors import RequestError, first_line
from dfkd.system.files import can_exist, hash_file, user_path
from dfkd.system.names import Named
from dfkd.system.portable import expand, names_of
from dfkd.system.remote import is_remote
from dfkd.system.remote_folder import folder_of

MODEL = Kind("model", ("dfkd.models", "torchvision.models"))
OBJECT = "object "
"""Start of the architecture of a network that was given as a Python object. No text can build it again."""
_KNOWN_PACKAGES = ("dfkd", "torchvision", "timm")  # their constructors load weights only if an option says so


@dataclass(frozen=True)
class Found:
    """The network that a MODEL text names, before its first forward pass."""

    spec: str
    module: nn.Module
    named: Named
    class_key: str | None = None
    """The constructor's parameter for the class count."""
    channel_key: str | None = None
    """The constructor's parameter for the number of input channels."""
    channels: int | None = None
    image_size: int | None = None
    takes_any_size: bool = False
    """Whether `image_size` is only the default of a network of `dfkd`, which takes other sizes too."""
    expected: Expected = UNKNOWN
    code: str | None = None
    has_weights: bool | None = True
    may_bring_weights: bool = False
    """Whether the constructor is code that may load weights by itself."""
    new_layers: tuple[str, ...] = ()
    """Names of the classifier layers, if the weights have another class count."""
    spelling: Mapping[str, str] = field(default_factory=dict)
    """The `$NAME` in a run's architecture, by the path that replaced the `$NAME`."""


def find_model(
    text: str, classes: int | None, channels: int | None, new_classifier: bool, image_size: int | None
) -> Found:
    """Read or build the network that a MODEL text names.

    `classes` and `channels` are those of a student's teacher. They apply if neither the text nor the weights give a
    count. `image_size` applies to architectures of `dfkd` that are built for one size, if the text gives none. With
    `new_classifier`, weights may have another class count: the other layers are kept, and the classifier is new.

    Raises: RequestError as `dfkd.models.load.load_model` does.
    """
    if is_remote(text):
        return _from_run(folder_of(text))
    if (kind := _kind(text)) == "name":
        return _from_name(text, classes, channels, new_classifier, image_size)
    return _from_run(user_path(text)) if kind == "run" else _from_export(user_path(text))


def check_there(text: str) -> None:
    """Raise RequestError if a MODEL names an unknown network, or a local file that does not exist."""
    if is_remote(text):
        return
    if (kind := _kind(text)) == "export":
        require_file(user_path(text), (".pt2",))
    elif kind == "name":
        name, _, weights = text.partition("@")
        _look_up(name)
        if weights:
            weights_there(user_path(weights))


def _kind(text: str) -> Literal["run", "export", "name"]:
    """Return what a MODEL on this machine is. Raises: RequestError for a path to something else."""
    path = user_path(text)
    if not can_exist(path / CONFIG):  # too long for a path: a network with the widths of all layers
        return "name"
    if (path / CONFIG).is_file():
        return "run"
    if path.suffix == ".pt2" and ("@" not in text or path.is_file()):
        return "export"
    if path.suffix == ".onnx":
        raise RequestError(f"{text!r}: ONNX is written and not read; name the RUN, or export it as .pt2 too")
    if "@" not in text and (names_weights(text) or ("/" in text and path.is_file())):
        raise RequestError(f"{text!r} names weights without their architecture: NAME[:key=value,...]@{text}")
    if "/" in text.partition("@")[0].partition(":")[0]:
        hint = _of_timm(text.partition("@")[0])
        raise RequestError(
            f"{text!r} is not a finished RUN (no {CONFIG} there), nor a .pt2 file, nor a model's name{hint}"
        )
    return "name"


def check_name(text: str) -> None:
    """Raise RequestError for a NAME that is unknown and no path. Paths may not exist yet."""
    name = text.partition("@")[0]
    if name == text and names_weights(text):  # a file of weights without architecture, which must not be imported
        return
    path = user_path(text)
    if "/" not in name.partition(":")[0] and not (can_exist(path) and path.exists()):
        _look_up(name)


def _look_up(text: str) -> Component:
    """What a NAME names. Raises: RequestError; where timm has the network, with its NAME here."""
    try:
        return MODEL.look_up(text)
    except RequestError as error:
        if hint := _of_timm(text):
            raise RequestError(f"no model is called {text!r}{hint}") from error
        raise


def _of_timm(text: str) -> str:
    """How a network of timm is named, where a text that is no NAME has the name of one; else nothing."""
    name = re.sub(r"^timm(\.create_model)?[.:/]", "", text).partition(",")[0]
    if not re.fullmatch(r"[\w.]+(:[\w.]+)?", name) or importlib.util.find_spec("timm") is None:
        return ""
    import timm

    network = name if timm.is_model(name) else name.partition(":")[0]
    return f"; timm has it: timm.create_model:model_name={network}" if timm.is_model(network) else ""


def _from_run(path: Path) -> Found:
    """Load the student of a finished run: `[model]` of its config.toml and student.safetensors."""
    request = read_request(path)
    table, architecture = request.model, request.model.architecture
    weights = path / WEIGHTS
    if not weights.is_file():
        raise RequestError(f"run {str(path)!r} is not finished (no {WEIGHTS}): start its dfkd distill again")
    if architecture.startswith(OBJECT):
        raise RequestError(
            f"the student of run {str(path)!r} was a Python object ({architecture.removeprefix(OBJECT)}); "
            f"dfkd.open_run({str(path)!r}, student=module) opens it"
        )
    text = expand(architecture)
    found = _from_name(text, None, None)
    student = request.content.get("student")
    trained = student.get("code") if isinstance(student, Mapping) else None
    if trained is not None and trained != found.code:
        say(
            f"note: the code of {found.named.name} has changed since run {path.name} was trained: it may answer "
            "differently with the same weights"
        )
    load_weights(found.module, finished_weights(path))
    return replace(
        found,
        spec=path.resolve().name,
        image_size=found.image_size if table.image_size is None else table.image_size,
        takes_any_size=found.takes_any_size and table.image_size is None,
        expected=Expected(table.normalize, Frame(table.crop_pct, table.interpolation), classes=table.class_names),
        has_weights=True,
        spelling=names_of(text),
    )


def _from_export(path: Path) -> Found:
    """Load a torch.export program, unflattened: its modules keep their paths for taps, and train() works."""
    require_file(path, (".pt2",))
    check_program(path)
    try:
        with warnings.catch_warnings():  # torch 2.11 warns about its own reader
            warnings.simplefilter("ignore")
            notes = {NOTES: ""}
            program = torch.export.load(path, extra_files=notes)
            module = unflattened(program)
    except Exception as error:  # the reader of a damaged file can raise any exception
        raise RequestError(f"{str(path)!r} cannot be read: {first_line(error)}") from error
    check_evaluates(program, path)
    inputs = program.graph_signature.user_inputs
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    if len(values) != 1 or not isinstance(values[0], Tensor) or values[0].ndim != 4:
        raise RequestError(f"{str(path)!r} does not take exactly one input [batch, channels, height, width]")
    batch, channels, height, width = (n if isinstance(n, int) else None for n in values[0].shape)
    if batch is not None:
        hint = "export it with dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)"
        raise RequestError(f"{str(path)!r} takes only batches of {batch}; {hint}")
    if height != width:
        raise RequestError(f"{str(path)!r} takes images of {height}x{width} pixels; they must be square")
    return Found(
        path.name,
        module,
        Named(path.name),
        channels=channels,
        image_size=height,
        expected=from_program(notes[NOTES]),
        code=hash_file(path),
    )


def _from_name(
    text: str,
    classes: int | None,
    channels: int | None,
    new_classifier: bool = False,
    image_size: int | None = None,
) -> Found:
    architecture, at, weights = text.partition("@")
    if at and not weights:
        raise RequestError(f"{text!r} names no weights after the @")
    model = _named(architecture)
    class_key, channel_key = count_keys(model)
    ours = model.target.__module__.startswith("dfkd.models")
    size_key = SIZE if ours and SIZE in (parameter.name for parameter in model.parameters) else None
    given = ((class_key, classes), (channel_key, channels), (size_key, image_size))
    used, new = model.preset(**{key: n for key, n in given if key and n is not None}), []
    renews = new_classifier and class_key is not None and classes is not None
    if renews and loads_weights(used.options):
        module = construct(used.without(*WEIGHT_OPTIONS))  # built first: the seed decides its new layers
        new = keep_layers(module, construct(used.without(class_key or "")))
    else:
        module = construct(used)
    brings, stored = getattr(module, "brings_weights", False) is True, None
    if weights and brings:
        raise RequestError(f"model {model.name!r} reads its weights itself: write weights={weights} among its options")
    if weights:
        path = user_path(weights)
        module, used, renewed = _loaded(module, used, path, (class_key, channel_key), model.options, renews)
        new, stored = renewed or new, from_safetensors(path)
    expected = stored or of_network(model.target, used.options, module)
    return Found(
        model.text + (f"@{Path(weights).name}" if weights else ""),
        module,
        used.named,
        class_key,
        channel_key,
        used.options.get(channel_key or ""),
        expected.size or made_for(model.target, used.options, module),
        ours and not (expected.size or SIZE in used.options),
        expected,
        code=model.code or _inner_code(model),
        has_weights=True if weights or brings else None if model.is_own else False,
        may_bring_weights=model.target.__module__.partition(".")[0] not in _KNOWN_PACKAGES,
        new_layers=tuple(new),
    )


def _named(text: str) -> Component:
    """Return the constructor that `NAME[:key=value,...]` names, under its own name unless that has dots."""
    model = _look_up(text)
    if model.named.numbers:
        number = model.named.numbers[0]
        raise RequestError(f"in model {text!r}, {number:g} is for no parameter: write key=value")
    return model if model.is_own else replace(model, named=replace(model.named, name=model.target.__name__))


def _loaded(
    module: nn.Module,
    used: Component,
    path: Path,
    keys: tuple[str | None, str | None],
    given: Mapping[str, Any],
    renews: bool,
) -> tuple[nn.Module, Component, list[str]]:
    """Load a file of weights into a network, which is built again if they have other counts under `keys`.

    Counts that the text has `given` stay, and with `renews` the class count, too: the classifier is then new.
    Returns: the network, its constructor, and the names of the new layers.
    """
    state = read_state_dict(path, module)
    seen = counts_in(fit_prefix(state, module), module, *keys)
    other, unsaid = used.set(**(seen | dict(given))), seen.keys() - given.keys()
    options = [parameter.name for parameter in used.parameters]
    if renews and keys[0] in unsaid:
        trained = construct(other)
        load_state(trained, state, path, options)
        return module, used, keep_layers(module, trained)
    if unsaid:
        used, module = other, construct(other)
    load_state(module, state, path, options)
    return module, used, []


def _inner_code(model: Component) -> str | None:
    """Return a hash of the code of the network that `network=` names, if the user wrote that code."""
    text = model.options.get("network")
    if not isinstance(text, str) or model.is_own:
        return None
    inner = MODEL.look_up(text)
    return inner.code or _inner_code(inner)
