"""Random input of a network, on which two forms of it are compared."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.models.features.taps import run_network


def noise(count: int, channels: int, size: int) -> Float[Tensor, "{count} {channels} {size} {size}"]:
    """Return the same normal noise in every call, without torch's global generator, which holds the student's seed."""
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def same_logits(
    built: nn.Module, loaded: nn.Module, view: Float[Tensor, "batch channels size size"], near: float
) -> bool:
    """Return whether two forms of a network give the same logits, up to `near` times the largest of them.

    The user's own code may return more than logits, which only the loaded network leaves out.
    """
    device = next((value.device for value in loaded.parameters()), view.device)
    ours, theirs = run_network(built, view), run_network(loaded, view.to(device)).cpu()
    return isinstance(ours, Tensor) and bool((ours - theirs).abs().max() <= near * theirs.abs().max())
