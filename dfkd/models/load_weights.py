"""Loading of a state dict into a network. Keys that do not fit are named."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from dfkd.models.features.taps import network_code
from dfkd.models.state import COUNTER, EXTRA, State, completed, fit_prefix, only, part
from dfkd.models.weights import INDEX, read_state_dict
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.system.foreign import Raised
from dfkd.system.text import few

_PART = re.compile(r"-\d{5}-of-\d{5}")


def load_weights(module: nn.Module, path: Path) -> None:
    """Load the weights of a file into `module`. Prefixes such as `module.` that all keys share are stripped.

    Raises: RequestError as `read_state_dict` does, and if keys or shapes do not fit.
    """
    load_state(module, read_state_dict(path, module), path)


def load_state(module: nn.Module, state: State, path: Path, options: Sequence[str] = ()) -> None:
    """Load the tensors read from `path` into `module`. Surplus keys are left out with a note if all others fit.

    `options` are the parameters of the module's constructor, for the hint.

    Raises: RequestError with the missing, the unexpected and the mis-shaped keys.
    """
    given = fit_prefix(state, module)
    state, own = completed(given, module), module.state_dict()
    if kept := [name for name in state if name.endswith(EXTRA) and name not in given]:
        say(f"note: weights {path.name!r} lack {few(kept)}, which is not a tensor: the constructor's value is used")
    try:
        _put(module, state)
    except Raised as raised:
        if not str(raised.error).startswith("Error(s) in loading state_dict"):  # not torch's list of mismatches
            raise
        missing, unexpected, shapes = _differences(own, state)
        if unexpected and not missing and not shapes and not _more_layers(own, unexpected):
            _put(module, only(state, own))
            say(
                f"note: weights {path.name!r}: {len(unexpected):,} of {len(state):,} tensors are left out, which the "
                f"model does not have ({few(unexpected)}); check its name and options if these matter"
            )
            return
        why = _mismatch(own, state) or raised.said
        hint = "check its name and options" + (f" ({', '.join(options)})" if options else "")
        if missing and _PART.search(path.name):
            hint = f"it is one of several parts; name their list, {_PART.sub('', path.name)}{INDEX}"
        raise RequestError(f"weights {str(path)!r} do not fit the model: {why}; {hint}") from None


def _put(module: nn.Module, state: State) -> None:
    """Load a state dict strictly, so that a module's own renaming of old keys takes part.

    A module may need a version that the state dict lacks. The module's current version is then tried.
    """
    try:
        with network_code(module):
            module.load_state_dict(state)
    except Raised as raised:
        if hasattr(state, "_metadata") or isinstance(raised.error, RuntimeError):
            raise
        versioned = part(state, "")
        versioned._metadata = getattr(module.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
        with network_code(module):
            module.load_state_dict(versioned)


def _more_layers(own: Iterable[str], unexpected: Iterable[str]) -> bool:
    """Return whether an unexpected key equals a key of the model but for a number: the network is deeper."""
    known = {re.sub(r"\d+", "0", key) for key in own}
    return any(re.sub(r"\d+", "0", key) in known for key in unexpected)


def _differences(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    """Return the missing, the unexpected and the mis-shaped keys, the last with their shapes."""
    # many checkpoints are older than BatchNorm's counter; torch fills it in
    missing = [key for key in own if key not in given and not key.endswith(COUNTER)]
    unexpected = [key for key in given if key not in own]
    shapes = [
        f"{key} {list(given[key].shape)} for {list(own[key].shape)}"
        for key in own
        if key in given and not key.endswith(EXTRA) and own[key].shape != given[key].shape
    ]
    return missing, unexpected, shapes


def _mismatch(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    kinds = zip(("missing", "unexpected", "mis-shaped"), _differences(own, given), strict=True)
    return "; ".join(f"{len(keys)} {kind} ({few(keys)})" for kind, keys in kinds if keys)
