"""BatchNorm's population statistics, computed anew for weights that no longer change."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.models.features.taps import network_code, run_network


def batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The layers that keep statistics of what passes through them."""
    kind = nn.modules.batchnorm._BatchNorm
    return [layer for layer in module.modules() if isinstance(layer, kind) and layer.track_running_stats]


@torch.no_grad()
def reestimate(module: nn.Module, views: Iterable[Float[Tensor, "batch channels height width"]]) -> None:
    """Replace the running statistics of `module` by their plain averages over batches; leaves it in evaluation mode.

    PreciseBN of Rethinking "Batch" in BatchNorm, 2021, https://arxiv.org/abs/2105.07576: while the student learns, the
    running statistics are a moving average of those of weights that are gone. `views` should be as the student learnt
    from them: its weights fit the statistics of cropped, flipped and mixed images, and those of the images as they are
    made the students of `dfkd demo`'s digits far worse. Everything but BatchNorm is in evaluation mode, as when the
    student is used: dropout would widen the variances.
    """
    with network_code(module):
        norms = batch_norms(module.eval())
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for the cumulative average
        norm.train()
    for view in views:
        run_network(module, view)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
