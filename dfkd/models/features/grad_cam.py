"""Grad-CAM: the part of an image on which a network's logit for a class depends."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from dfkd.models.architectures.specialists import Specialists
from dfkd.models.classifier import Classifier
from dfkd.models.ensemble import leader
from dfkd.models.features.find_taps import find_taps
from dfkd.models.features.taps import Tap, in_group
from dfkd.system.errors import RequestError


def deepest_map(classifier: Classifier) -> Tap:
    """Return the tap of the deepest map of more than one pixel. Raises: RequestError if there is none.

    Of a network with specialists it is the generalist's map: a specialist votes on a part of the images only.
    """
    model = classifier.model
    example = torch.zeros(1, model.channels, model.trial_size, model.trial_size)
    within, network = leader(model.module)
    if isinstance(network, Specialists):
        within, network = f"{within}generalist.", network.generalist
    taps = find_taps(network, example, wanted=("stage",)).taps
    deepest = taps[in_group(taps, "stage")[-1]]
    return replace(deepest, path=within + deepest.path)


def grad_cam(
    classifier: Classifier, tap: Tap, view: Float[Tensor, "batch channels height width"], classes: Int[Tensor, " batch"]
) -> Float[Tensor, "batch height width"]:
    """Return for each image the map relu(sum over k of a_k A_k), divided by its maximum, at the image's resolution.

    A_k is channel k of the output at `tap`. a_k is the gradient of the logit of the image's class with respect to A_k,
    averaged over the pixels. A map without a positive value is 0 everywhere.
    Selvaraju et al., Grad-CAM, 2017 (https://arxiv.org/abs/1610.02391).
    Raises: RequestError if no gradient of the logits reaches the map.
    """
    outputs: list[Tensor] = []

    def keep(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        outputs.append(output)
        return output.clone()  # later layers may change the output in place

    handle = classifier.network.get_submodule(tap.path).register_forward_hook(keep)
    try:
        logits = classifier.answer(view.to(classifier.place.device).requires_grad_(True)).logits
        of_class = logits.gather(1, classes.to(logits.device)[:, None]).sum()
        reached = of_class.requires_grad and outputs[0].requires_grad
        gradient = torch.autograd.grad(of_class, outputs[0], allow_unused=True)[0] if reached else None
    finally:
        handle.remove()
    if gradient is None:
        raise RequestError(f"no gradient of the logits reaches {tap.path}")
    maps = outputs[0]
    weighted = (gradient.float().mean(dim=(2, 3), keepdim=True) * maps.detach().float()).sum(dim=1, keepdim=True)
    cam = F.interpolate(weighted.relu(), view.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    most = cam.amax(dim=(1, 2), keepdim=True)
    return cam / most.masked_fill(most == 0, 1)
