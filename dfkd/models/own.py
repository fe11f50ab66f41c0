"""Models that are given as Python objects, where else a MODEL text stands: a network, or several teachers."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dfkd.config.stages.shared import Input, Mixing
from dfkd.models.counts import made_for
from dfkd.models.expected import of_network
from dfkd.models.find import OBJECT, Found
from dfkd.models.identity import code_identity
from dfkd.system.errors import RequestError
from dfkd.system.names import Named


@dataclass(frozen=True)
class OwnNetwork:
    """A module of the caller. Each use copies the module, which never changes."""

    module: nn.Module

    @property
    def name(self) -> str:
        """Qualified name of the module's class."""
        kind = type(self.module)
        return f"{kind.__module__}.{kind.__qualname__}"

    def found(self) -> Found:
        """Return a copy of the module as it is now. Raises: RequestError if the module cannot be copied."""
        try:
            module = copy.deepcopy(self.module)
        except Exception as error:  # foreign code; the usual cause is a tensor of an autograd graph
            raise RequestError(f"the module {self.name} cannot be copied ({error})") from error
        return Found(
            type(self.module).__name__,
            module.to("cpu", torch.float32).eval(),
            Named(OBJECT + self.name),
            image_size=made_for(type(self.module), {}, module),
            expected=of_network(None, {}, module),
            code=code_identity(self.module),
        )


@dataclass(frozen=True)
class OneTeacher:
    """One of several teachers, with the keys of a `[[teacher]]` table."""

    model: str | OwnNetwork
    normalize: str | None = None
    image_size: int | None = None
    classes: str | tuple[str, ...] | None = None
    """Names of the classes, or a FILE with the names."""
    other: str | None = None
    """Name of the teacher's class for everything else."""
    weight: float = 1.0
    class_weights: Mapping[str, Any] | None = None
    """Factors of the weight by name of the class. The values are numbers if the file is valid."""

    @property
    def input(self) -> Input:
        """The input that the table states."""
        return Input(self.normalize, self.image_size)


@dataclass(frozen=True)
class Several:
    """Several teachers that act as one classifier."""

    teachers: tuple[OneTeacher, ...]
    mixing: Mixing | None = None


GivenModel = str | OwnNetwork | Several
"""A MODEL text, a network as a Python object, or several teachers."""
