"""The losses of `--loss` as plain functions of logits, without a teacher, a student or a training.

Logits are float [batch, classes]. A loss returns one number, the mean over the batch. A loss that reads features takes
`Outputs` in place of logits. It builds its own layers from the first batch.

Example:
    >>> import torch
    >>> import dfkd
    >>> teacher = torch.tensor([[2.0, 0.0, -1.0]])
    >>> kd = dfkd.losses.KD(temperature=4.0)
    >>> float(kd(teacher, teacher))
    0.0
    >>> fitnet = dfkd.losses.FitNet()
    >>> maps = {"stage1": torch.ones(1, 8, 4, 4)}
    >>> fitnet(dfkd.losses.Outputs(teacher, maps), dfkd.losses.Outputs(teacher, maps)).shape
    torch.Size([])
"""

import functools
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dfkd.distill import losses
from dfkd.distill.loss import Loss
from dfkd.distill.losses import __all__ as _losses
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError

if TYPE_CHECKING:
    from dfkd.distill.losses import *  # noqa: F403

__all__ = [*_losses, "Outputs"]


class _Alone(Loss):
    """Base class put before a loss: it converts logits to outputs, and builds layers from the first batch."""

    _ready = False

    def __call__(self, student: Tensor | Outputs, teacher: Tensor | Outputs) -> Tensor:
        """Compute the loss of a batch of logits [batch, classes], or of outputs."""
        ours, theirs = (x if isinstance(x, Outputs) else Outputs(x) for x in (student, teacher))
        if not self._ready:
            self._begin(ours, theirs)
        return super().__call__(ours, theirs)

    def _begin(self, student: Outputs, teacher: Outputs) -> None:
        name = type(self).__name__
        if self.uses_networks:
            raise RequestError(f"{name} needs the networks themselves; use it in Teacher.distill")
        missing = [tap for tap in self.taps if not (student.group(tap) or tap in student.features)]
        if missing:
            raise RequestError(f"{name} reads the features {', '.join(missing)}: give Outputs(logits, features)")
        self.setup(student, teacher)
        self._ready = True


@functools.cache
def __getattr__(name: str) -> Any:
    if name not in _losses:
        raise AttributeError(f"module 'dfkd.losses' has no attribute {name!r}")
    loss = getattr(losses, name)
    return type(name, (_Alone, loss), {"__doc__": loss.__doc__, "__module__": __name__})


def __dir__() -> list[str]:
    return __all__
