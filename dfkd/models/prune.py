"""Structured pruning: channels with small weights are removed, and the result is a MODEL of fewer multiplications."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor, nn

from dfkd.models.architectures.pruned import spell_widths, width_of
from dfkd.models.cost import multiplications
from dfkd.models.features.channel_groups import Port, plain
from dfkd.models.find import MODEL
from dfkd.models.load import Model
from dfkd.models.noise import noise, same_logits
from dfkd.models.state import tensors_of
from dfkd.system import names
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.system.foreign import Foreign

_TRIES, _NEAR = 14, 0.99
"""Bisection steps in the search for the share of the channels, and the part of the budget at which it ends."""
_EQUIVALENT = {"cifar_resnet": {"shortcut": "conv"}}
"""Options that build the same function from layers that can be pruned. Shortcuts that pad have no weights."""
_SAME = 1e-3
"""Tolerance of the logits for rounding, as a share of the largest logit."""


def check_installed() -> None:
    """Raise RequestError if torch-pruning is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about its own imports
            import torch_pruning  # noqa: F401
    except ImportError as error:
        raise RequestError(f"--prune needs {error.name}: pip install '.[prune]' in the checkout of dfkd") from None


@dataclass(frozen=True)
class Pruned:
    """A classifier with fewer channels, and what it was made from."""

    model: Model
    whole: nn.Module
    """The network before, with all channels."""
    kept: Mapping[Port, Int[Tensor, " count"]]
    """Channels of `whole` that the outputs of convolutions and linear layers keep."""


def prune(model: Model, share: float) -> Pruned:
    """Return the classifier with at most `share` of its multiplications, pruned alike in every layer.

    A channel's importance is the norm of all weights that belong to it, in every layer of its group (torch-pruning,
    DepGraph, arXiv 2301.12900). The number of classes does not change. All layers keep the same share of their
    channels, up to one channel, so that the multiplications come near to `share`.
    Raises: RequestError if the share cannot be reached, or if the network cannot be built from its widths.
    """
    check_installed()
    whole = _cuttable(model)
    example = noise(1, model.channels, model.trial_size)
    total = multiplications(model.module, example)
    best, kept, low, high = None, {}, 0.0, 1.0
    for _ in range(_TRIES):
        middle = (low + high) / 2
        tried, channels = _with(middle, whole, example, model)
        count = multiplications(tried, example)
        if count > share * total:
            high = middle
            continue
        best, kept, low = tried, channels, middle
        if count >= _NEAR * share * total:
            break
    if best is None:
        raise RequestError(
            f"--prune {share:g}: {model.spec} keeps more of its multiplications even with one channel in each layer; "
            "give a larger share"
        )
    found = _written(model, whole, best)
    count, left = multiplications(found.module, example), found.parameter_count()
    say(
        f"--prune {share:g}: {count:,} of {total:,} multiplications are left, and {left:,} of "
        f"{model.parameter_count():,} parameters"
    )
    return Pruned(found, whole.module, kept)


def _cuttable(model: Model) -> Model:
    """Return the model, or the same function as a network of layers that can be pruned."""
    architecture = names.parse(model.architecture)
    options = _EQUIVALENT.get(architecture.name)
    if options is None or options.items() <= architecture.options.items():
        return model
    text = str(names.Named(architecture.name, {**architecture.options, **options}))
    module = MODEL.look_up(text).build().eval()
    module.load_state_dict(tensors_of(model.module), strict=False)
    return replace(model, architecture=text, module=module)


def _with(
    left: float, whole: Model, example: Tensor, model: Model
) -> tuple[nn.Module, dict[Port, Int[Tensor, " count"]]]:
    """Return a copy with the share `left` of the channels of every layer, and the outputs that layers keep."""
    import torch_pruning

    module = copy.deepcopy(whole.module).eval().requires_grad_(True)
    last = [layer for layer in module.modules() if (width_of(layer) or (0,))[0] == model.classes]
    what = f"--prune: {model.spec} cannot be pruned:"
    with Foreign(what, always=True, hint="; prune a network of plain convolutions"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.BasePruner(
            module,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=1 - left,
            pruning_ratio_dict=_ratios(module, left),
            ignored_layers=last[-1:],
        )
        removed: dict[nn.Module, set[int]] = {}
        for group in pruner.step(interactive=True):
            for part, channels in group:
                if plain(part.target.module) and pruner.DG.is_out_channel_pruning_fn(part.handler):
                    removed.setdefault(part.target.module, set()).update(channels)
            group.prune()
    kept: dict[Port, Tensor] = {}
    for name, layer in module.named_modules():
        if gone := removed.get(layer):
            total = len(gone) + len(layer.weight)
            kept[name, 0] = torch.tensor([c for c in range(total) if c not in gone])
    return module, kept


def _ratios(module: nn.Module, left: float) -> dict[nn.Module, float]:
    """Return the shares that torch-pruning is to remove, so that layers keep `left` of their channels.

    Layers of equal width round at different values of `left`. Otherwise all of them would lose a channel at once. The
    first layers round up, because they are the narrowest in most networks. Every layer keeps a channel.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    ratios: dict[nn.Module, float] = {}
    for number, layer in enumerate(layers, 1):
        width = len(layer.weight)
        count = max(1, int(width * left + 1 - number / len(layers)))
        ratios[layer] = 1 - (count + 0.5) / width  # torch-pruning rounds down what is left, and floats are not exact
    return ratios


def _written(model: Model, whole: Model, module: nn.Module) -> Model:
    """Build the pruned network from its text. Raises: RequestError if the result is another network."""
    layers = dict(module.named_modules())
    widths = {
        path: width
        for path, layer in whole.module.named_modules()
        if (width := width_of(layers[path])) is not None and width != width_of(layer)
    }
    options = {"network": whole.architecture, "widths": spell_widths(widths)}
    text = str(names.Named("pruned", options))
    built = MODEL.look_up(text).build().eval()
    failure = RequestError(f"--prune: {model.spec} cannot be built with fewer channels; prune another network")
    try:
        built.load_state_dict(tensors_of(module))
    except RuntimeError:
        raise failure from None
    if not same_logits(built, module.eval(), noise(1, model.channels, model.trial_size), _SAME):
        raise failure
    return replace(model, spec=f"{model.spec} pruned", architecture=text, module=built)
