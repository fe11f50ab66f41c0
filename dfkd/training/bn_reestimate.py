"""Re-estimation of BatchNorm's running statistics for final weights."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.models.features.taps import network_code, run_network


def batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the layers that track running statistics."""
    kind = nn.modules.batchnorm._BatchNorm
    return [layer for layer in module.modules() if isinstance(layer, kind) and layer.track_running_stats]


@torch.no_grad()
def reestimate(module: nn.Module, views: Iterable[Float[Tensor, "batch channels height width"]]) -> None:
    """Replace the running statistics of `module` by their plain averages over batches.

    This is PreciseBN of Rethinking "Batch" in BatchNorm, 2021, https://arxiv.org/abs/2105.07576. During training,
    running statistics are a moving average over weights that have since changed. `views` should be augmented as in
    training, because the weights fit the statistics of cropped, flipped and mixed images. Statistics of the original
    images made the students of `dfkd demo`'s digits far worse. All other layers are in evaluation mode, as when the
    student is used: dropout would increase the variances. Afterwards, all of `module` is in evaluation mode.
    """
    with network_code(module):
        norms = batch_norms(module.eval())
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # None selects torch's cumulative average
        norm.train()
    for view in views:
        run_network(module, view)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
