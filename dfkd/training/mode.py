"""Mode of a student's layers in training."""

from torch import nn

from dfkd.models.architectures.soft_tree import SoftTree
from dfkd.models.architectures.specialists import Specialists
from dfkd.models.fake_int8 import Rounded
from dfkd.models.features.taps import network_code
from dfkd.training.bn_reestimate import batch_norms

_LEARN_IN_TRAINING_MODE = (SoftTree, Specialists, Rounded, nn.RNNBase)
"""Modules that learn in training mode only: some of `dfkd`, and RNNs on a GPU."""


def set_mode(student: nn.Module, keeps_statistics: bool, dropout: bool) -> None:
    """Set a student to training mode.

    If it `keeps_statistics`, its BatchNorm layers are in evaluation mode. Without `dropout`, all its other layers are:
    user code may drop whole blocks in training mode.
    """
    norms = set(batch_norms(student))
    with network_code(student):
        student.train()
        for layer in student.modules():
            kept = keeps_statistics if layer in norms else not dropout
            if kept and not isinstance(layer, _LEARN_IN_TRAINING_MODE):
                layer.training = False
