"""A student that begins with layers of its teacher."""

import torch
from torch import Tensor, nn

from dfkd.errors import RequestError
from dfkd.models.load import Model


def inherit(student: Model, teacher: Model) -> str:
    """Copy to the student every layer that the teacher has under the same name with the same shapes; says how many.

    A layer is a module with parameters or buffers of its own, and is copied whole or not at all: a bias says nothing
    without its weight. As blocks are numbered within their stage, a shallower student gets each stage's first blocks.
    Raises: RequestError where the two share no such layer.
    """
    theirs = {name: _own(layer) for name, layer in teacher.module.named_modules()}
    layers = {name: _own(layer) for name, layer in student.module.named_modules() if _own(layer)}
    shared = [name for name in layers if _shapes(layers[name]) == _shapes(theirs.get(name, {}))]
    if not shared:
        raise RequestError(
            f"--init teacher: no layer of --student {student.spec} has the name and shape of one of the teacher's "
            f"({teacher.spec}); take a student of its family and width, or leave --init out"
        )
    with torch.no_grad():
        for layer in shared:
            for name, value in layers[layer].items():
                value.copy_(theirs[layer][name])
    return f"--init teacher: {len(shared)} of the student's {len(layers)} layers begin as the teacher's"


def _own(layer: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a module itself."""
    return {**dict(layer.named_parameters(recurse=False)), **dict(layer.named_buffers(recurse=False))}


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}
