"""Loading of a MODEL: `NAME[:key=value,...][@WEIGHTS]`, the folder of a RUN, or a `.pt2` file (torch.export)."""

import hashlib
from dataclasses import dataclass

import torch
from torch import nn

from dfkd.config.stages.shared import AS_STATED, Input
from dfkd.data.images.frame import ENCODED_ABOVE, WHOLE, Frame
from dfkd.data.images.normalize import NORMALIZATIONS, Normalization, parse_normalize
from dfkd.models import DEFAULT_IMAGE_SIZE
from dfkd.models.find import Found, find_model
from dfkd.models.new_classifier import WEIGHT_OPTIONS, loads_weights
from dfkd.models.own import GivenModel, Several
from dfkd.models.state import tensors_of
from dfkd.models.trial import input_and_classes
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.system.names import Named
from dfkd.system.portable import portable

DEFAULT_NORMALIZE = "imagenet"


@dataclass(frozen=True)
class Model:
    """A classifier and the input that it expects."""

    spec: str
    """The MODEL text. Weights or RUN are shortened to the last part of their path."""
    architecture: str
    """`NAME[:key=value,...]` with the class and channel counts in use. The text builds the network without weights."""
    module: nn.Module
    """The network on the CPU, in float32 and evaluation mode."""
    preprocess: Normalization
    normalize: str
    image_size: int | None
    """Side of the input in pixels; None if only the data can tell."""
    classes: int
    channels: int
    code: str | None = None
    """Hash of the code of the user's own architecture, or of a .pt2 file."""
    has_weights: bool | None = True
    """False for a bare name without weights. None if a dotted name, or an option like weights=none, gives none."""
    may_bring_weights: bool = False
    """Whether the constructor is code that may load weights by itself."""
    frame: Frame = WHOLE
    """Crop and interpolation of photographs."""
    class_names: tuple[str, ...] = ()
    """Names of the classes, if the model's file holds them."""
    new_layers: tuple[str, ...] = ()
    """Names of the classifier's layers if the weights had another class count. They are random."""
    made_for: int | None = None
    """Side in pixels that the model itself states, whatever the options are."""
    takes_any_size: bool = False
    """Whether `made_for` is only the default of a network of `dfkd`, which takes other sizes too."""

    @property
    def input(self) -> Input:
        """The input, for another network that gets the same images."""
        return Input(self.normalize, self.image_size, self.frame.crop_pct, self.frame.interpolation)

    @property
    def trial_size(self) -> int:
        """Side in pixels of an input on which the network is tried, before there is data."""
        return self.image_size or DEFAULT_IMAGE_SIZE

    @property
    def of_photographs(self) -> bool:
        """Whether the images are larger than those that a selection stores as pixels."""
        return (self.image_size or 0) > ENCODED_ABOVE

    def fingerprint(self) -> dict[str, str]:
        """Return what decides the outputs: architecture, hash of the state dict, and hash of the code.

        The SHA-256 of the state dict covers names, dtypes, shapes and bytes. New layers are left out: the student's
        seed decides them.
        """
        digest = hashlib.sha256()
        for name, value in sorted(tensors_of(self.module).items()):
            if name.rpartition(".")[0] in self.new_layers:
                continue
            digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        own = {"code": self.code} if self.code else {}
        return {"architecture": self.architecture, "weights": digest.hexdigest(), **own}

    def parameter_count(self) -> int:
        """Return the number of parameters. The weights and biases of layers in int8 are buffers, and count, too."""
        buffers = dict(self.module.named_buffers())
        int8 = {name.removesuffix("weight") for name, buffer in buffers.items() if buffer.dtype == torch.int8}
        rounded = (buffers[name] for layer in int8 for name in (f"{layer}weight", f"{layer}bias") if name in buffers)
        return sum(values.numel() for values in (*self.module.parameters(), *rounded))


def load_trained(
    text: GivenModel,
    input: Input = AS_STATED,
    option: str = "--teacher",
    *,
    classes: int | None = None,
    channels: int | None = None,
    unsaid: str = DEFAULT_NORMALIZE,
) -> Model:
    """Load a model that must have weights. `option` is its name in error messages.

    Raises: RequestError as `load_model` does, and for a model without weights.
    """
    model = load_model(text, input, classes=classes, channels=channels, unsaid=unsaid)
    if not model.has_weights and model.may_bring_weights:
        say(f"note: {option} {model.spec} names no weights: unless its own code loads some, its predictions are random")
    elif not model.has_weights:
        raise RequestError(
            f"{option} {text!r} has no weights, and its predictions would be random; write {text}@WEIGHTS"
        )
    return model


def load_model(
    text: GivenModel,
    input: Input = AS_STATED,
    *,
    classes: int | None = None,
    channels: int | None = None,
    new_classifier: bool = False,
    unsaid: str = DEFAULT_NORMALIZE,
) -> Model:
    """Load the model that a MODEL text names, or that is given as a Python object.

    `classes` and `channels` are the teacher's, if the model is its student. With `new_classifier`, weights may have
    another class count: the classifier is then new. `unsaid` is the normalization if neither `input` nor the model
    states one.

    Class and channel counts come from the text, else from the shapes of the weights, else from the teacher, else from
    the constructor. The image size is that of `input`, else the RUN's, else the one that the architecture is made for.
    Raises: RequestError for an unknown name or option, an unfinished RUN, and weights that are missing or do not fit.
    Also for a network without [batch, classes] logits, and for counts that differ from the teacher's.
    """
    if input.image_size is not None and input.image_size < 1:
        raise RequestError(f"--image-size {input.image_size} is not a number of pixels (1 or more)")
    if isinstance(text, Several):
        raise RequestError("several teachers are not one network; name one of them")
    if isinstance(text, str):
        found = find_model(text, classes, channels, new_classifier, input.image_size)
    else:
        found = text.found()
    size = input.image_size or found.image_size
    takes, gives = input_and_classes(found, size)
    _check_counts(found, takes, gives, channels, classes, new_classifier)
    if found.new_layers:
        layers = ", ".join(found.new_layers)
        say(f"note: model {found.spec}: its weights are of other classes; {layers} is new, with {gives} classes")
    frame = _frame(found, size, input)
    said = [] if input.normalize is not None else _own_normalize(found, takes)
    normalize = input.normalize or next(iter(said), unsaid)
    _say_expected(found, [name for name in said if name != unsaid], frame, size, input)
    counts = {found.class_key: gives, found.channel_key: takes}
    options = {**found.named.options, **{key: count for key, count in counts.items() if key}}
    kept = {key: options[key] for key in sorted(options) if key not in WEIGHT_OPTIONS}
    return Model(
        spec=portable(found.spec, found.spelling),
        architecture=portable(str(Named(found.named.name, kept)), found.spelling),
        module=found.module,
        preprocess=Normalization(*parse_normalize(normalize, takes)),
        normalize=normalize,
        image_size=size,
        classes=gives,
        channels=takes,
        code=found.code,
        has_weights=_has_weights(found),
        may_bring_weights=found.may_bring_weights,
        frame=frame,
        class_names=found.expected.classes if len(found.expected.classes) == gives else (),
        new_layers=tuple(found.new_layers),
        made_for=found.image_size,
        takes_any_size=found.takes_any_size,
    )


def _check_counts(
    found: Found, takes: int, gives: int, channels: int | None, classes: int | None, new_classifier: bool
) -> None:
    """Raise RequestError for other input channels or classes than the teacher has."""
    if channels not in (None, takes):
        fixed = "" if found.channel_key else "; its constructor has no in_channels to change that"
        raise RequestError(f"model {found.spec!r} takes {takes} input channels, the teacher {channels}{fixed}")
    if classes not in (None, gives):
        fixed = "" if found.class_key or found.code is None else "; its constructor has no num_classes to change that"
        if new_classifier and found.class_key and found.has_weights:  # a RUN, or a text with the count
            fixed = f"; write NAME@WEIGHTS without {found.class_key} to get a new classifier"
        raise RequestError(f"model {found.spec!r} has {gives} classes, the teacher {classes}{fixed}")


def _own_normalize(found: Found, channels: int) -> list[str]:
    """Return the normalization that the model states, by its name if it has one; empty if there is none."""
    said = found.expected.normalize
    if said is None or found.expected.said_by is None:
        return [] if said is None else [said]
    try:
        values = parse_normalize(said, channels)
    except RequestError:  # values of three channels tell nothing about a gray network
        return []
    return [next((name for name in NORMALIZATIONS if parse_normalize(name, channels) == values), said)]


def _frame(found: Found, size: int | None, input: Input) -> Frame:
    """Return the given crop and interpolation, else the model's. Up to 64 pixels only a run's are used."""
    of_photos = (size or 0) > ENCODED_ABOVE or found.expected.said_by is None
    said = found.expected.frame if of_photos else WHOLE
    return Frame(input.crop_pct or said.crop_pct, input.interpolation or said.interpolation)


def _say_expected(found: Found, normalize: list[str], frame: Frame, size: int | None, input: Input) -> None:
    """Print in one line what the model states about its input, and which options override that."""
    says, overrides = [f"normalization {name}" for name in normalize], ["--normalize"] * len(normalize)
    if frame != WHOLE and not (input.crop_pct or input.interpolation) and size is not None:
        side = frame.resized(size)
        says.append(f"images are resized to {side} pixels ({frame.interpolation}) and cropped to {size}")
        overrides += ["--crop-pct", "--interpolation"]
    if says and found.expected.said_by is not None:
        last = f" and {overrides.pop()} override" if overrides[1:] else " overrides"
        say(f"model {found.spec}: {', '.join(says)}, as {found.expected.said_by}; {', '.join(overrides)}{last} it")


def _has_weights(found: Found) -> bool | None:
    """Return `Model.has_weights`. Weights come from the MODEL's file or from an option of the constructor."""
    if found.has_weights or loads_weights(found.named.options):
        return True
    return None if found.named.options.keys() & WEIGHT_OPTIONS else found.has_weights
