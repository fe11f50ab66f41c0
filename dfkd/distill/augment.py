"""Random views of a batch, vectorised; teacher and student see the same view."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def crop_and_flip(
    pixels: Shaped[Tensor, "batch height width channels"], padding: int, flip: bool, generator: torch.Generator
) -> Shaped[Tensor, "batch height width channels"]:
    """Each image shifted by up to `padding` pixels in both directions (black comes in), and mirrored with chance 1/2.

    One gather does both: for every output pixel the row and column that it comes from. Gradients go back through it.
    """
    n, height, width, _ = pixels.shape
    device = pixels.device
    if padding:
        pixels = torch.nn.functional.pad(pixels, (0, 0, padding, padding, padding, padding))
        shift = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator, device=device)
    else:
        shift = torch.zeros(2, n, 1, dtype=torch.long, device=device)
    rows = shift[0] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(n, width)
    if flip:
        mirrored = torch.rand(n, 1, generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    columns = columns + shift[1]
    return pixels[torch.arange(n, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def mixup(
    view: Float[Tensor, "batch channels height width"], alpha: float, generator: torch.Generator
) -> Float[Tensor, "batch channels height width"]:
    """Convex pairs of images, one Beta(alpha, alpha) weight an image (mixup, https://arxiv.org/abs/1710.09412).

    The teacher answers for the mixed image, so labels are not mixed.
    """
    n = len(view)
    # a Beta variable from two Gamma ones, which torch draws from a given generator
    gammas = torch._standard_gamma(torch.full((2, n), alpha, device=view.device), generator=generator)
    weight = (gammas[0] / gammas.sum(dim=0).clamp_min(1e-12))[:, None, None, None]
    partner = torch.randperm(n, generator=generator, device=view.device)
    return weight * view + (1 - weight) * view[partner]
