"""Pixel-wise entropy: how much of each part of an image a network's features discard, and which concepts they keep."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dfkd.models.classifier import Classifier

STEPS, SAMPLES = 100, 4
"""Optimizer steps, and perturbed images in each step."""
REACH = 0.1
"""Standard deviation of the noise of a part if all parts mattered equally, in units of the normalized input."""
SIGNIFICANT = 0.2
"""Nats by which the entropy of a visual concept is below the background's: b in the paper."""


def pixel_entropy(
    classifier: Classifier,
    view: Float[Tensor, "batch channels height width"],
    grid: int = 16,
    steps: int = STEPS,
) -> Float[Tensor, "batch rows columns"]:
    """Return the entropy in nats of the noise that each part of an image tolerates.

    The entropy is high where the features discard the content. An image is cut into squares, `grid` of them on its
    longer side. Part i gets normal noise of standard deviation sigma_i. The deviations minimize

        E |f(x + noise) - f(x)|^2 / s  -  beta * sum over i of log sigma_i

    f are the features at the tap `map` of `classifier`. s is the same expectation for noise of deviation t on every
    part, divided by t^2, as t goes to 0. Division by s makes networks comparable. s is always computed in float32,
    because rounding to bfloat16 is larger than the small noise. The entropy of part i is log sigma_i + log(2 pi e) / 2.
    beta is 2 `REACH`^2 / parts. Every sigma_i would then be `REACH` if f depended on all parts equally. The paper gives
    no value of beta. Adam takes `steps` steps on log sigma, each with `SAMPLES` noises. The result is the mean over the
    second half of the steps.

    Cheng et al., Explaining knowledge distillation by quantifying the knowledge, 2020
    (https://arxiv.org/abs/2003.03622), after Ma et al., 2019 (https://arxiv.org/abs/1906.04109).
    """
    view = view.to(classifier.place.device)
    random = torch.Generator(view.device).manual_seed(0)

    def features(of: Tensor, exact: bool = False) -> Tensor:
        return classifier.answer(of, exact).features["map"].float()

    def moved(deviation: Tensor, noise: Tensor, exact: bool = False) -> Float[Tensor, " batch"]:
        """Return the squared distance of the features under noise of the deviations [batch, height, width]."""
        gap = features(view + deviation[:, None] * noise, exact) - still
        return gap.square().flatten(1).sum(dim=1)

    def drawn() -> Tensor:
        return torch.randn(view.shape, generator=random, device=view.device)

    with torch.no_grad():
        still = features(view, exact=True)
        small = REACH / 100
        everywhere = view.new_full((len(view), *view.shape[2:]), small)
        distances = torch.stack([moved(everywhere, drawn(), exact=True) for _ in range(16)])
        scale = distances.mean(dim=0).clamp_min(torch.finfo(torch.float32).tiny) / small**2
        still = features(view)
    side = side_of(view.shape[2:], grid)
    parts = [-(-length // side) for length in view.shape[2:]]
    beta = 2 * REACH**2 / math.prod(parts)
    logs = torch.full((len(view), *parts), math.log(REACH), device=view.device, requires_grad=True)
    optimizer, found = torch.optim.Adam([logs], 0.1), torch.zeros_like(logs.detach())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * step / steps)) / 2
        deviation = at_pixels(logs.exp(), side, view.shape[2:])
        distance = torch.stack([moved(deviation, drawn()) for _ in range(SAMPLES)]).mean(dim=0)
        loss = (distance / scale).sum() - beta * logs.sum()
        (logs.grad,) = torch.autograd.grad(loss, logs)
        optimizer.step()
        if step >= steps // 2:
            found += logs.detach() / (steps - steps // 2)
    return found + math.log(2 * math.pi * math.e) / 2


def side_of(size: Sequence[int], grid: int) -> int:
    """Return the side in pixels of the square parts of an image, `grid` of them on its longer side."""
    return -(-max(size) // grid)


def at_pixels(parts: Float[Tensor, "batch rows columns"], side: int, size: Sequence[int]) -> Float[Tensor, "batch h w"]:
    """Expand the value of every part to its pixels. The last parts of an image may be cut off."""
    pixels = parts.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)
    return pixels[:, : size[0], : size[1]]


def concept_parts(
    entropy: Float[np.ndarray, "rows columns"], foreground: Bool[np.ndarray, "rows columns"]
) -> tuple[Bool[np.ndarray, "rows columns"], Bool[np.ndarray, "rows columns"]]:
    """Return the foreground and the background parts with an entropy `SIGNIFICANT` below the background's mean.

    These are the visual concepts of the paper that `pixel_entropy` names.
    Raises: ValueError for an image without background.
    """
    if foreground.all():
        raise ValueError("the foreground covers every part of the image: there is no background to compare with")
    kept = entropy[~foreground].mean() - entropy > SIGNIFICANT
    return kept & foreground, kept & ~foreground
