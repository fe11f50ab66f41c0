"""torch's optimizers without the import of torch's compiler."""

import inspect
from typing import TypeVar

import torch

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)


def _uncompiled(kind: type[Kind]) -> type[Kind]:
    """Return a subclass of an optimizer without the decorators that exclude its methods from torch.compile.

    The first call of a decorated method imports the compiler, which takes longer than torch itself. dfkd does not
    compile optimizers.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), {**plain, "step": step, "__doc__": kind.__doc__})


SGD, Adam, AdamW = _uncompiled(torch.optim.SGD), _uncompiled(torch.optim.Adam), _uncompiled(torch.optim.AdamW)
