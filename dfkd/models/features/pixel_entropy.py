"""Pixel-wise entropy: how much of each part of an image a network's features discard, and the concepts they keep."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dfkd.models.classifier import Classifier

STEPS, SAMPLES = 100, 4
"""Optimizer steps, and perturbed images in each."""
REACH = 0.1
"""The deviation that a part would have if all parts mattered alike, in units of the normalized input."""
SIGNIFICANT = 0.2
"""By how much a part's entropy is below the background's for a visual concept, in nats: b in the paper."""


def pixel_entropy(
    classifier: Classifier,
    view: Float[Tensor, "batch channels height width"],
    grid: int = 16,
    steps: int = STEPS,
    samples: int = SAMPLES,
    reach: float = REACH,
) -> Float[Tensor, "batch rows columns"]:
    """The entropy in nats of the noise that each part of an image can bear: high where its content is discarded.

    An image is cut into squares, `grid` of them on its longer side. Part i gets normal noise of deviation sigma_i. The
    deviations minimize

        E |f(x + noise) - f(x)|^2 / s  -  beta * sum over i of log sigma_i

    f are the features at the tap `map` of `classifier`. s is the same expectation for noise of deviation t on every
    part, divided by t^2, as t goes to 0. It makes networks comparable. The entropy of part i is log sigma_i + log(2 pi
    e) / 2. beta = 2 reach^2 / parts, so that every sigma_i would be `reach` if f depended on all parts alike; the
    paper gives no number. Adam takes `steps` steps on log sigma, each with `samples` noises. What is returned is the
    mean over the second half of the steps.

    Cheng et al., Explaining knowledge distillation by quantifying the knowledge, 2020
    (https://arxiv.org/abs/2003.03622), after Guan et al., 2019 (https://arxiv.org/abs/1906.04109).
    """
    view = view.to(classifier.place.device)
    random = torch.Generator(view.device).manual_seed(0)

    def moved(deviation: Tensor, noise: Tensor) -> Float[Tensor, " batch"]:
        """The squared distance of the features, with these deviations [batch, height, width]."""
        features = classifier.answer(view + deviation[:, None] * noise).features["map"].float()
        return (features - still).square().flatten(1).sum(dim=1)

    def drawn() -> Tensor:
        return torch.randn(view.shape, generator=random, device=view.device)

    with torch.no_grad():
        still = classifier.answer(view).features["map"].float()
        small = reach / 100
        everywhere = view.new_full((len(view), *view.shape[2:]), small)
        distances = torch.stack([moved(everywhere, drawn()) for _ in range(16)])
        scale = distances.mean(dim=0).clamp_min(torch.finfo(torch.float32).tiny) / small**2
    side = -(-max(view.shape[2:]) // grid)
    parts = [-(-length // side) for length in view.shape[2:]]
    beta = 2 * reach**2 / math.prod(parts)
    logs = torch.full((len(view), *parts), math.log(reach), device=view.device, requires_grad=True)
    optimizer, found = torch.optim.Adam([logs], 0.1), torch.zeros_like(logs.detach())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * step / steps)) / 2
        deviation = at_pixels(logs.exp(), side, view.shape[2:])
        distance = torch.stack([moved(deviation, drawn()) for _ in range(samples)]).mean(dim=0)
        loss = (distance / scale).sum() - beta * logs.sum()
        (logs.grad,) = torch.autograd.grad(loss, logs)
        optimizer.step()
        if step >= steps // 2:
            found += logs.detach() / (steps - steps // 2)
    return found + math.log(2 * math.pi * math.e) / 2


def at_pixels(parts: Float[Tensor, "batch rows columns"], side: int, size: Sequence[int]) -> Float[Tensor, "batch h w"]:
    """The value of every part at each of its pixels; the last parts of an image may be cut."""
    pixels = parts.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)
    return pixels[:, : size[0], : size[1]]


def concept_parts(
    entropy: Float[np.ndarray, "rows columns"], foreground: Bool[np.ndarray, "rows columns"], b: float = SIGNIFICANT
) -> tuple[Bool[np.ndarray, "rows columns"], Bool[np.ndarray, "rows columns"]]:
    """The parts on the foreground, and on the background, whose entropy is below the background's mean by b.

    These are the visual concepts of the paper above. Raises: ValueError for an image without background.
    """
    if foreground.all():
        raise ValueError("the foreground covers every part of the image: there is no background to compare with")
    kept = entropy[~foreground].mean() - entropy > b
    return kept & foreground, kept & ~foreground
