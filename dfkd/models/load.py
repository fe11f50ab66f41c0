"""MODEL -> a network: `NAME[:key=value,...][@WEIGHTS]`, the folder of a RUN, or a `.pt2` file (torch.export)."""

import hashlib
import itertools
import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfkd.data.images.frame import ENCODED_ABOVE, WHOLE, Frame, Interpolation
from dfkd.data.images.normalize import NORMALIZATIONS, Preprocess, parse_normalize
from dfkd.models import DEFAULT_IMAGE_SIZE
from dfkd.models.expected import size_option
from dfkd.models.features.taps import network_code, run_network
from dfkd.models.find import Found, find_model
from dfkd.models.health import are_probabilities
from dfkd.models.logits import Member, find_member, members
from dfkd.models.new_classifier import WEIGHT_OPTIONS, loads_weights
from dfkd.models.own import GivenModel, Several
from dfkd.models.state import tensors_of
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.system.foreign import Raised
from dfkd.system.names import Named
from dfkd.system.portable import portable

DEFAULT_NORMALIZE = "imagenet"
_PROBE_SIZES = (DEFAULT_IMAGE_SIZE, 64, 224)
_ON_SIZES = re.compile(r"(?i)size(?!.*to have \d+ channels)|shape|height|width|resolution|dimension")
_SETS_SIZE = "(--image-size sets the size)"


@dataclass(frozen=True)
class Model:
    """A classifier and what it expects of its input."""

    spec: str
    """The MODEL, with the weights or the RUN by their last name."""
    architecture: str
    """`NAME[:key=value,...]` with the class and channel counts in use: builds the same network, without weights."""
    module: nn.Module
    """On the cpu, float32, evaluation mode."""
    preprocess: Preprocess
    normalize: str
    image_size: int | None
    """Side of the input in pixels; None where only the data can say."""
    classes: int
    channels: int
    code: str | None = None
    """A hash of the code of an architecture of one's own, or of the file of a .pt2 program."""
    has_weights: bool | None = True
    """False where a bare name has no weights; None where a dotted name, or an option like weights=none, gives none."""
    may_bring_weights: bool = False
    """Whether the constructor is code that may load weights unasked."""
    frame: Frame = WHOLE
    """What of a photograph it sees."""
    class_names: tuple[str, ...] = ()
    """The names of the classes, where its file holds them."""
    new_classifier: bool = False
    """Whether its weights were of another class count, so that its classifier has none."""
    made_for: int | None = None
    """The side of the images that the model says itself, whatever was given."""
    takes_any_size: bool = False
    """Whether that is but the default of a network of ours."""

    @property
    def of_photographs(self) -> bool:
        """Whether its images are larger than those that a selection keeps as pixels."""
        return (self.image_size or 0) > ENCODED_ABOVE

    def fingerprint(self) -> dict[str, str]:
        """What decides the outputs: the architecture, and a SHA-256 of the state's names, types, shapes and bytes."""
        digest = hashlib.sha256()
        for name, value in sorted(tensors_of(self.module).items()):
            digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        own = {"code": self.code} if self.code else {}
        return {"architecture": self.architecture, "weights": digest.hexdigest(), **own}

    def parameter_count(self) -> int:
        """The number of parameters."""
        return sum(parameter.numel() for parameter in self.module.parameters())


def load_trained(
    text: GivenModel,
    option: str = "--teacher",
    *,
    normalize: str | None,
    image_size: int | None,
    crop_pct: float | None = None,
    interpolation: Interpolation | None = None,
    classes: int | None = None,
    channels: int | None = None,
    unsaid: str = DEFAULT_NORMALIZE,
) -> Model:
    """`load_model` for a model that is to answer, under its option. Raises: RequestError also without weights."""
    model = load_model(
        text,
        normalize=normalize,
        image_size=image_size,
        crop_pct=crop_pct,
        interpolation=interpolation,
        classes=classes,
        channels=channels,
        unsaid=unsaid,
    )
    if not model.has_weights and model.may_bring_weights:
        say(f"note: {option} {model.spec} names no weights: unless its own code loads some, it answers at random")
    elif not model.has_weights:
        raise RequestError(f"{option} {text!r} has no weights and would answer at random; write {text}@WEIGHTS")
    return model


def load_model(
    text: GivenModel,
    *,
    normalize: str | None = None,
    image_size: int | None = None,
    crop_pct: float | None = None,
    interpolation: Interpolation | None = None,
    classes: int | None = None,
    channels: int | None = None,
    new_classifier: bool = False,
    unsaid: str = DEFAULT_NORMALIZE,
) -> Model:
    """The model that a MODEL text names, or that is at hand.

    `classes` and `channels` are the teacher's, given where this is its student. With `new_classifier` weights may be of
    another class count: the classifier is then new. `unsaid` is the normalization where neither an option nor the model
    says one.

    Class and channel counts come from the text, else from the weights' shapes, else from the teacher, else they are
    the constructor's. `image_size` is the given one, else the RUN's, else what the architecture is made for.
    Raises: RequestError for an unknown name or option, weights that are missing or do not fit, an unfinished RUN, a
    network that gives no [batch, classes] logits, and counts that differ from the teacher's.
    """
    if image_size is not None and image_size < 1:
        raise RequestError(f"--image-size {image_size} is not a number of pixels (1 or more)")
    if isinstance(text, Several):
        raise RequestError("several teachers are not one network; name one of them")
    found = find_model(text, classes, channels, new_classifier, image_size) if isinstance(text, str) else text.found()
    size = image_size or found.image_size
    takes, gives = _counts(found, size)
    if channels not in (None, takes):
        fixed = "" if found.channel_key else "; its constructor has no in_channels to change that"
        raise RequestError(f"model {found.spec!r} takes {takes} input channels, the teacher {channels}{fixed}")
    if classes not in (None, gives):
        fixed = "" if found.class_key or found.code is None else "; its constructor has no num_classes to change that"
        raise RequestError(f"model {found.spec!r} has {gives} classes, the teacher {classes}{fixed}")
    if found.new_layers:
        layers = ", ".join(found.new_layers)
        say(f"note: model {found.spec}: its weights are of other classes; {layers} is new, with {gives} classes")
    frame = _frame(found, size, crop_pct, interpolation)
    said = [] if normalize is not None else _own_normalize(found, takes)
    normalize = normalize or next(iter(said), unsaid)
    _say_expected(found, [name for name in said if name != unsaid], frame, size, crop_pct or interpolation)
    counts = {found.class_key: gives, found.channel_key: takes}
    options = {**found.named.options, **{key: count for key, count in counts.items() if key}}
    kept = {key: options[key] for key in sorted(options) if key not in WEIGHT_OPTIONS}
    return Model(
        spec=portable(found.spec, found.spelling),
        architecture=portable(str(Named(found.named.name, kept)), found.spelling),
        module=found.module,
        preprocess=Preprocess(*parse_normalize(normalize, takes)),
        normalize=normalize,
        image_size=size,
        classes=gives,
        channels=takes,
        code=found.code,
        has_weights=_has_weights(found),
        may_bring_weights=found.may_bring_weights,
        frame=frame,
        class_names=found.expected.classes if len(found.expected.classes) == gives else (),
        new_classifier=bool(found.new_layers),
        made_for=found.image_size,
        takes_any_size=found.takes_any_size,
    )


def _own_normalize(found: Found, channels: int) -> list[str]:
    """The normalization that the model says, by its name where it has one; none where it says none."""
    said = found.expected.normalize
    if said is None or found.expected.said_by is None:
        return [] if said is None else [said]
    try:
        values = parse_normalize(said, channels)
    except RequestError:  # three colours' values for a gray network: nothing is known of it
        return []
    return [next((name for name in NORMALIZATIONS if parse_normalize(name, channels) == values), said)]


def _frame(found: Found, size: int | None, crop_pct: float | None, interpolation: Interpolation | None) -> Frame:
    """What is given, else what the model says, which up to 64 pixels a run's alone decides."""
    of_photos = (size or 0) > ENCODED_ABOVE or found.expected.said_by is None
    said = found.expected.frame if of_photos else WHOLE
    return Frame(crop_pct or said.crop_pct, interpolation or said.interpolation)


def _say_expected(found: Found, normalize: list[str], frame: Frame, size: int | None, given: object) -> None:
    """Say in one line what the model says of its input, and which options override it."""
    says, overrides = [f"normalization {name}" for name in normalize], ["--normalize"] * len(normalize)
    if frame != WHOLE and not given and size is not None:
        side = frame.resized(size)
        says.append(f"photographs are resized to {side} pixels ({frame.interpolation}) and cropped to {size}")
        overrides += ["--crop-pct", "--interpolation"]
    if says and found.expected.said_by is not None:
        last = f" and {overrides.pop()} override" if overrides[1:] else " overrides"
        say(f"model {found.spec}: {', '.join(says)}, as {found.expected.said_by}; {', '.join(overrides)}{last} it")


def _has_weights(found: Found) -> bool | None:
    """As `Model.has_weights`: those of the MODEL's file, or those that an option of the constructor loads."""
    if found.has_weights or loads_weights(found.named.options):
        return True
    return None if found.named.options.keys() & WEIGHT_OPTIONS else found.has_weights


def _channel_counts(found: Found) -> tuple[int, ...]:
    """The input channels that a network may take: those it says, else its first convolution's, else color or gray."""
    if found.channels:
        return (found.channels,)
    first = next((layer.in_channels for layer in found.module.modules() if isinstance(layer, nn.Conv2d)), 3)
    return tuple(dict.fromkeys((first, 3, 1)))


@torch.no_grad()
def _counts(found: Found, image_size: int | None) -> tuple[int, int]:
    """The channels of the input and the classes of the logits, from a forward pass of two black images."""
    with network_code(found.module):
        module = found.module.eval()
    refusals: dict[int, tuple[bool, str]] = {}
    for channels, size in itertools.product(_channel_counts(found), (image_size,) if image_size else _PROBE_SIZES):
        try:
            black = torch.zeros(2, channels, size, size)
            logits = run_network(module, black)
        except Raised as raised:
            key = size_option(module)
            builds = f"({found.named.name}:{key}={size} builds it for this size; --image-size sets the size)"
            sets = builds if key and image_size else _SETS_SIZE
            kinds = (RuntimeError, ValueError, AssertionError)
            of_size = isinstance(raised.error, kinds) and bool(_ON_SIZES.search(raised.said))
            why = f"{raised.said}{raised.line}{f' {sets}' if of_size else ''}"
            refusals[channels] = of_size, f"an input of [batch, {channels}, {size}, {size}]: {why}"
            continue
        if black._version:  # the student would learn from what the teacher has made of the images
            module.register_forward_pre_hook(_copied)
        if not isinstance(logits, Tensor):
            logits = _take_member(found, logits)
        if logits.ndim == 4 and logits.shape[2:] == (1, 1):
            module.register_forward_hook(_flattened)
            logits = logits.flatten(1)
        if logits.ndim != 2 or len(logits) != 2 or logits.shape[1] < 2:
            raise RequestError(
                f"model {found.spec!r} returns {list(logits.shape)} for two images, not logits [batch, classes] "
                "of two classes or more"
            )
        if are_probabilities(logits):
            module.register_forward_hook(_logarithms)
            say(f"note: model {found.spec!r} gives probabilities (softmax); their logarithms are taken as its logits")
        return channels, logits.shape[1]
    _, first = max(refusals.values(), key=lambda refusal: refusal[0])
    raise RequestError(f"model {found.spec!r} cannot take {first}")


def _copied(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A hook before a network that writes into its input."""
    return tuple(value.clone() for value in inputs)


def _flattened(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A hook on a network that gives its logits as maps of one pixel."""
    return output.flatten(1)


def _logarithms(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A hook on a network that ends in a softmax: a later one undoes the logarithm."""
    return output.clamp_min(torch.finfo(output.dtype).tiny).log()


def _take_member(found: Found, output: object) -> Tensor:
    """The logits among what a network returns; from now on it returns them alone."""
    kind, key = type(output).__name__, find_member(output, found.module)
    if key is None:
        raise RequestError(f"model {found.spec!r} returns a {kind}, not one tensor of logits [batch, classes]")
    found.module.register_forward_hook(Member(key))
    logits: Tensor = members(output)[key]
    say(f"note: model {found.spec!r} returns a {kind}; its member {key!r} is taken as the {logits.shape[1]} logits")
    return logits
