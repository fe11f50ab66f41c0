"""Search of a checkpoint for the dictionary of tensors that holds the network's weights."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from torch import Tensor

from dfkd.models.state import EXTRA, State

_USUAL = ("state_dict", "model", "net")
"""Keys that are searched first, in this order."""
_DEEPEST = 3
"""Levels of nested dictionaries that are searched."""


@dataclass(frozen=True)
class Choice:
    """A dictionary of a checkpoint and its name, such as `ema.module`. `state` is None if none was found."""

    state: State | None
    name: str = ""
    unusual: bool = False
    """Whether the dictionary is not where most training scripts store weights."""
    others: Sequence[str] = ()
    """Names of other dictionaries that fit as well. If the requested name was not found: all names."""


def choose(content: object, fits: Callable[[State], float] | None, key: str = "") -> Choice:
    """Return the dictionary called `key`, else the usual one, else the one that fits the network best.

    `fits` returns the share of the network's keys that a dictionary has, from 0 to 1. Another dictionary replaces the
    usual one only if the other has all keys and the usual one does not.
    """
    found = dict(_dictionaries(content))
    if key:
        return Choice(found.get(key), key, others=() if key in found else list(found))
    first = next((name for name, state in found.items() if state is usual(content)), None)
    by_use = Choice(None) if first is None else Choice(found[first], first)
    if fits is None or not found:
        return by_use
    shares = {name: fits(state) for name, state in found.items()}
    best = max(found, key=lambda name: (shares[name], name == first))
    taken = best if first is None or (shares[best] == 1 > shares[first]) else first
    if shares[taken] == 0:  # tensors of an optimizer or another network: the error is about the usual key
        return by_use
    others = [name for name in found if name != taken and shares[name] == 1 == shares[taken]]
    return Choice(found[taken], taken, taken != first, others)


def usual(content: object) -> object:
    """Return the content under the keys that most training scripts use."""
    while isinstance(content, Mapping) and (inner := [k for k in _USUAL if isinstance(content.get(k), Mapping)]):
        content = content[inner[0]]
    return content


def is_state_dict(value: object) -> TypeGuard[State]:
    """Return whether `value` maps names to tensors, at least one, and otherwise only to extra state (`EXTRA`)."""
    return (
        isinstance(value, Mapping)
        and any(isinstance(v, Tensor) for v in value.values())
        and all(isinstance(k, str) and (isinstance(v, Tensor) or k.endswith(EXTRA)) for k, v in value.items())
    )


def _dictionaries(content: object, name: str = "", depth: int = 0) -> Iterator[tuple[str, State]]:
    """Yield each dictionary of tensors in a checkpoint, with the keys that lead to it."""
    if is_state_dict(content):
        yield name, content
    elif isinstance(content, Mapping) and depth < _DEEPEST:
        inside: Mapping[Any, Any] = content
        for key, value in inside.items():
            if isinstance(key, str):
                yield from _dictionaries(value, f"{name}.{key}" if name else key, depth + 1)
