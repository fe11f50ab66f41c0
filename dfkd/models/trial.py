"""Trial of a network on two black images: the input that it takes, and the logits that it gives."""

import itertools
import re

import torch
from torch import Tensor, nn

from dfkd.models import DEFAULT_IMAGE_SIZE
from dfkd.models.expected import size_option
from dfkd.models.features.taps import network_code, run_network
from dfkd.models.find import Found
from dfkd.models.health import are_probabilities
from dfkd.models.logits import Member, find_member, members
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.system.foreign import Raised

_PROBE_SIZES = (DEFAULT_IMAGE_SIZE, 64, 224)
_ON_SIZES = re.compile(r"(?i)size(?!.*to have \d+ channels)|shape|height|width|resolution|dimension")


@torch.no_grad()
def input_and_classes(found: Found, image_size: int | None) -> tuple[int, int]:
    """Return the input channels and the classes, from a forward pass of two black images.

    From now on the network returns logits [batch, classes], and leaves its input as it is.
    """
    with network_code(found.module):
        found.module.eval()
    black, output = _first_output(found, image_size)
    if black._version:  # else the student would get the images that the teacher has changed
        found.module.register_forward_pre_hook(_copied)
    return black.shape[1], _let_return_logits(found, output).shape[1]


def _channel_counts(found: Found) -> tuple[int, ...]:
    """Return the numbers of input channels to try: those stated, else the first convolution's, then 3 and 1."""
    if found.channels:
        return (found.channels,)
    first = next((layer.in_channels for layer in found.module.modules() if isinstance(layer, nn.Conv2d)), 3)
    return tuple(dict.fromkeys((first, 3, 1)))


def _first_output(found: Found, image_size: int | None) -> tuple[Tensor, object]:
    """Return the first input that the network takes, of two black images, and its output.

    Raises: RequestError if it takes none, with the refusal that concerns the size if there is one.
    """
    refusals: dict[int, tuple[bool, str]] = {}
    for channels, size in itertools.product(_channel_counts(found), (image_size,) if image_size else _PROBE_SIZES):
        black = torch.zeros(2, channels, size, size)
        try:
            return black, run_network(found.module, black)
        except Raised as raised:
            refusals[channels] = _refusal(found, raised, black, image_size is not None)
    _, first = max(refusals.values(), key=lambda refusal: refusal[0])
    raise RequestError(f"model {found.spec!r} cannot take {first}")


def _refusal(found: Found, raised: Raised, images: Tensor, size_given: bool) -> tuple[bool, str]:
    """Return whether a network refuses the size of its input, and what it says about which input."""
    key, size = size_option(found.module), images.shape[-1]
    builds = f"({found.named.name}:{key}={size} builds it for this size; --image-size sets the size)"
    sets = builds if key and size_given else "(--image-size sets the size)"
    kinds = (RuntimeError, ValueError, AssertionError)
    of_size = isinstance(raised.error, kinds) and bool(_ON_SIZES.search(raised.said))
    shape = ", ".join(["batch", *map(str, images.shape[1:])])
    return of_size, f"an input of [{shape}]: {raised.said}{raised.line}{f' {sets}' if of_size else ''}"


def _let_return_logits(found: Found, output: object) -> Tensor:
    """Let the network return its logits [batch, classes] alone from now on, and return them for its first output.

    Raises: RequestError if the output has none.
    """
    logits = output if isinstance(output, Tensor) else _take_member(found, output)
    if logits.ndim == 4 and logits.shape[2:] == (1, 1):
        found.module.register_forward_hook(_flattened)
        logits = logits.flatten(1)
    if logits.ndim != 2 or len(logits) != 2 or logits.shape[1] < 2:
        raise RequestError(
            f"model {found.spec!r} returns {list(logits.shape)} for two images, not logits [batch, classes] "
            "of two classes or more"
        )
    if are_probabilities(logits):
        found.module.register_forward_hook(_logarithms)
        say(f"note: model {found.spec!r} gives probabilities (softmax); their logarithms are taken as its logits")
    return logits


def _copied(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Clone the input of a network that changes its input in place (forward pre-hook)."""
    return tuple(value.clone() for value in inputs)


def _flattened(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Flatten logits that are maps of one pixel (forward hook)."""
    return output.flatten(1)


def _logarithms(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Replace a network's probabilities by their logarithms, which a softmax undoes (forward hook).

    The logarithms are in float32 or more. In bfloat16 they would be rounded more coarsely than the probabilities.
    """
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    return output.clamp_min(torch.finfo(output.dtype).tiny).log()


def _take_member(found: Found, output: object) -> Tensor:
    """Return the logits among a network's outputs, and let the network return only them from now on."""
    kind, key = type(output).__name__, find_member(output, found.module)
    if key is None:
        raise RequestError(
            f"model {found.spec!r} returns a {kind}, not one tensor of logits [batch, classes]; name a network that "
            "returns the logits alone"
        )
    found.module.register_forward_hook(Member(key))
    logits: Tensor = members(output)[key]
    say(f"note: model {found.spec!r} returns a {kind}; its member {key!r} is taken as the {logits.shape[1]} logits")
    return logits
