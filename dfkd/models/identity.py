"""Hash of what decides a module's outputs besides the weights: layers, their plain attributes, and loaded code."""

import re
from collections.abc import Iterator

from torch import nn

from dfkd.system.loaded_code import digest_of, is_versioned, of_class, of_values

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def code_identity(module: nn.Module) -> str:
    """Return a hash of everything but the weights: 16 hexadecimal digits.

    Classes and functions are hashed by their loaded byte code. A file may have changed since the import, and code that
    was typed into a notebook has no file.
    """
    return digest_of(_of_module(module, set()))


def _of_module(module: nn.Module, seen: set[int]) -> Iterator[str]:
    yield _ADDRESS.sub("", repr(module))
    for name, layer in module.named_modules():
        yield f"{name}: {type(layer).__module__}.{type(layer).__qualname__}"
        yield from of_class(type(layer), seen)
        if not is_versioned(type(layer).__module__):
            # the caller sets `training`; names with _ are torch's, and hold the weights
            own = {k: v for k, v in vars(layer).items() if k != "training" and not k.startswith("_")}
            yield from of_values(own, seen)
