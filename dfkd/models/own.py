"""A network that is at hand as an nn.Module, where otherwise a MODEL text names one."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from dfkd.models.expected import of_network
from dfkd.models.find import OBJECT, Found, made_for
from dfkd.models.identity import code_identity
from dfkd.system.errors import RequestError
from dfkd.system.names import Named


@dataclass(frozen=True)
class OwnNetwork:
    """A module of the caller's. It is copied whenever it is used, and never changed."""

    module: nn.Module

    @property
    def name(self) -> str:
        """Its class."""
        kind = type(self.module)
        return f"{kind.__module__}.{kind.__qualname__}"

    def found(self) -> Found:
        """A copy, as it is now. Raises: RequestError where it cannot be copied."""
        try:
            module = copy.deepcopy(self.module)
        except Exception as error:  # foreign code; tensors that are part of a graph are the usual ones
            raise RequestError(f"the module {self.name} cannot be copied ({error})") from error
        return Found(
            type(self.module).__name__,
            module.to("cpu", torch.float32).eval(),
            Named(OBJECT + self.name),
            image_size=made_for(type(self.module), {}, module),
            expected=of_network(None, {}, module),
            code=code_identity(self.module),
        )


GivenModel = str | OwnNetwork
"""A MODEL text, or a network that is at hand."""
