"""Vectorized random augmentation of a batch. Teacher and student see the same view."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from dfkd.system.shares import Share, all_of

_BY_IMAGE = 64 * 64
"""Pixels above which a processor takes the windows of a batch one by one, which is faster (benchmarks/speed/LOG.md)."""


def draw_crops(
    images: int, padding: int, flip: bool, generator: torch.Generator | None, device: torch.device
) -> Int[Tensor, "images 3"]:
    """Return a random view of each image, for `crop`.

    A view is a row offset and a column offset, both from 0 to 2 `padding`, and 1 for a mirrored image, else 0. Without
    a `generator`, torch's global generator is used.
    """
    if padding:
        shift = torch.randint(0, 2 * padding + 1, (2, images), generator=generator, device=device)
    else:
        shift = torch.zeros(2, images, dtype=torch.long, device=device)
    mirrored = torch.rand(images, generator=generator, device=device) < 0.5 if flip else torch.zeros_like(shift[0])
    return torch.stack([*shift, mirrored.long()], dim=1)


def crop(
    pixels: Shaped[Tensor, "batch height width channels"], padding: int, crops: Int[Tensor, "batch 3"]
) -> Shaped[Tensor, "batch height width channels"]:
    """Return each padded image's window at the row and column offset in `crops`, mirrored where `crops` says so.

    The padding is black. One gather operation reads each output pixel from its source row and column. Gradients flow
    through it. On a processor, large images without gradients are copied one by one.
    """
    n, height, width, _ = pixels.shape
    device = pixels.device
    if device.type == "cpu" and not pixels.requires_grad and height * width > _BY_IMAGE:
        return _one_by_one(pixels, padding, crops)
    if padding:
        pixels = F.pad(pixels, (0, 0, padding, padding, padding, padding))
    down, right, mirrored = crops.long()[:, :, None].unbind(dim=1)
    rows = down + torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    columns = torch.where(mirrored.bool(), width - 1 - columns, columns) + right
    return pixels[torch.arange(n, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _one_by_one(
    pixels: Shaped[Tensor, "batch height width channels"], padding: int, crops: Int[Tensor, "batch 3"]
) -> Shaped[Tensor, "batch height width channels"]:
    height, width = pixels.shape[1:3]
    out = (torch.zeros_like if padding else torch.empty_like)(pixels, memory_format=torch.contiguous_format)
    for image, view, (down, right, mirrored) in zip(pixels, out, crops.tolist(), strict=True):
        top, left = down - padding, right - padding
        part = image[max(top, 0) : height + min(top, 0), max(left, 0) : width + min(left, 0)]
        rows, columns = part.shape[:2]
        row, column = max(-top, 0), max(-left, 0)
        if mirrored:
            part, column = part.flip(1), width - column - columns
        view[row : row + rows, column : column + columns] = part
    return out


def crop_and_flip(
    pixels: Shaped[Tensor, "batch height width channels"],
    padding: int,
    flip: bool,
    generator: torch.Generator,
    share: Share | None = None,
) -> Shaped[Tensor, "batch height width channels"]:
    """Return each image shifted at random by up to `padding` pixels on both axes, and mirrored with probability 1/2.

    Black pixels fill the border. `share` tells which images of a batch `pixels` are; random numbers are drawn for the
    whole batch.
    """
    share = share or all_of(len(pixels))
    return crop(pixels, padding, draw_crops(share.of, padding, flip, generator, pixels.device)[share.rows])


def enlarge(
    view: Float[Tensor, "batch channels height width"],
    area: float,
    generator: torch.Generator,
    share: Share | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """Return a random window of each image, resized to the size of the image. With `area` 1, images stay unchanged.

    `share` as in `crop_and_flip`.

    The method is that of Going deeper with convolutions, 2014, https://arxiv.org/abs/1409.4842, where `area` is 0.08.
    The window's area, as a fraction of the image, is uniform from `area` to 1. Its aspect ratio is the image's times a
    factor from 3/4 to 4/3. Its logarithm is uniform, as in torchvision. Parts outside the image are cut off. Windows
    with a drawn area above 3/4 can therefore be smaller than drawn, by at most a seventh. Interpolation is bilinear.
    """
    if area >= 1:
        return view
    share = share or all_of(len(view))
    drawn = torch.rand(4, share.of, generator=generator, device=view.device)
    shares, factors, down, right = drawn[:, share.rows]
    shares, factors = area + (1 - area) * shares, torch.exp(math.log(4 / 3) * (2 * factors - 1))
    height, width = (shares / factors).sqrt().clamp_max(1), (shares * factors).sqrt().clamp_max(1)
    y, x = (2 * down - 1) * (1 - height), (2 * right - 1) * (1 - width)  # of the center; the edges are -1 and 1
    none = torch.zeros_like(x)
    windows = torch.stack([width, none, x, none, height, y], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(windows, list(view.shape), align_corners=False)
    found = F.grid_sample(view, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found.contiguous(memory_format=torch.channels_last)


def jitter(
    images: Float[Tensor, "batch channels height width"],
    strength: float,
    generator: torch.Generator,
    share: Share | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """Return images in [0, 1] with random brightness, contrast and, in color, saturation.

    `share` as in `crop_and_flip`.

    Each factor is uniform from 1 - `strength` to 1 + `strength`, for each image separately. The order is fixed:
    brightness, contrast, saturation. torchvision's ColorJitter has a random order. The luma is that of ITU-R 601.
    """
    channels, share = images.shape[1], share or all_of(len(images))
    factors = torch.empty(3, share.of, device=images.device).uniform_(1 - strength, 1 + strength, generator=generator)
    brightness, contrast, saturation = factors[:, share.rows, None, None, None].unbind()
    weights = images.new_tensor([0.299, 0.587, 0.114] if channels == 3 else [1 / channels] * channels)

    def luma(images: Tensor) -> Tensor:
        return (images * weights[:, None, None]).sum(dim=1, keepdim=True)

    images = (images * brightness).clamp(0, 1)
    images = torch.lerp(luma(images).mean(dim=(2, 3), keepdim=True), images, contrast).clamp(0, 1)
    return torch.lerp(luma(images), images, saturation).clamp(0, 1) if channels == 3 else images


def mix(
    view: Float[Tensor, "batch channels height width"], mixup: float, cutmix: float, generator: torch.Generator
) -> Float[Tensor, "batch channels height width"]:
    """Return each image mixed with another image of the batch. A fraction w ~ Beta(alpha, alpha) of the image stays.

    `mixup` > 0 is the alpha of w * image + (1 - w) * other (mixup: Beyond empirical risk minimization, 2017,
    https://arxiv.org/abs/1710.09412). `cutmix` > 0 is the alpha of a box that the other image fills. The box has 1 - w
    of the area, rounded to whole pixels (CutMix, 2019, https://arxiv.org/abs/1905.04899). With both, each image takes
    one of the two with probability 1/2. With neither, the view stays unchanged. Labels are not mixed, because the
    teacher's logits are those of the mixed image.

    Two details differ from the papers' code. Every image has its own weight and box, where the papers' code has one for
    the batch. The box is drawn within the image. CutMix's code draws the center and cuts off the parts outside the
    image, so that the box is smaller than its weight says.
    """
    n, _, height, width = view.shape
    weights = []
    if mixup:
        weights.append(_beta(mixup, n, view.device, generator)[:, None, None, None])
    if cutmix:
        weights.append(_outside_a_box(_beta(cutmix, n, view.device, generator), height, width, generator))
    if not weights:
        return view
    weight = weights[0]
    if len(weights) == 2:
        drawn = torch.rand(n, 1, 1, 1, generator=generator, device=view.device)
        weight = torch.where(drawn < 0.5, weights[0], weights[1])
    partner = torch.randperm(n, generator=generator, device=view.device)
    return weight * view + (1 - weight) * view[partner]


def _beta(alpha: float, n: int, device: torch.device, generator: torch.Generator) -> Float[Tensor, " n"]:
    """Return Beta(alpha, alpha) samples, made of Gamma samples, which torch can draw with a given generator."""
    gammas = torch._standard_gamma(torch.full((2, n), alpha, device=device), generator=generator)
    return gammas[0] / gammas.sum(dim=0).clamp_min(1e-12)


def _outside_a_box(
    kept: Float[Tensor, " batch"], height: int, width: int, generator: torch.Generator
) -> Float[Tensor, "batch 1 {height} {width}"]:
    """Return a mask with 0 in a random box within each image, and 1 outside. The fraction `kept` of the mask is 1.

    The box has the aspect ratio of the image.
    """
    inside = []
    for length in (height, width):
        size = ((1 - kept).sqrt() * length).round()
        drawn = torch.rand(len(kept), generator=generator, device=kept.device)
        start = (drawn * (length - size + 1)).floor()
        positions = torch.arange(length, device=kept.device)
        inside.append((positions >= start[:, None]) & (positions < (start + size)[:, None]))
    rows, columns = inside
    return 1 - (rows[:, None, :, None] & columns[:, None, None, :]).float()
