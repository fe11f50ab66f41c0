"""Grad-CAM: the part of an image on which a network's logit for a class depends."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from dfkd.models.classifier import Classifier
from dfkd.models.features.find_taps import find_taps
from dfkd.models.features.taps import Tap, in_group


def deepest_map(classifier: Classifier) -> Tap:
    """Return the tap of the deepest map of more than one pixel. Raises: RequestError if there is none."""
    model = classifier.model
    example = torch.zeros(1, model.channels, model.trial_size, model.trial_size)
    taps = find_taps(model.module, example, wanted=("stage",)).taps
    return taps[in_group(taps, "stage")[-1]]


def grad_cam(
    classifier: Classifier, tap: Tap, view: Float[Tensor, "batch channels height width"], classes: Int[Tensor, " batch"]
) -> Float[Tensor, "batch height width"]:
    """Return for each image the map relu(sum over k of a_k A_k), divided by its maximum, at the image's resolution.

    A_k is channel k of the output at `tap`. a_k is the gradient of the logit of the image's class with respect to A_k,
    averaged over the pixels. A map without a positive value is 0 everywhere.
    Selvaraju et al., Grad-CAM, 2017 (https://arxiv.org/abs/1610.02391).
    """
    outputs: list[Tensor] = []

    def keep(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        outputs.append(output)
        return output.clone()  # later layers may change the output in place

    handle = classifier.network.get_submodule(tap.path).register_forward_hook(keep)
    try:
        logits = classifier.answer(view.to(classifier.place.device).requires_grad_(True)).logits
        of_class = logits.gather(1, classes.to(logits.device)[:, None]).sum()
        (gradient,) = torch.autograd.grad(of_class, outputs[0])
    finally:
        handle.remove()
    maps = outputs[0]
    weighted = (gradient.float().mean(dim=(2, 3), keepdim=True) * maps.detach().float()).sum(dim=1, keepdim=True)
    cam = F.interpolate(weighted.relu(), view.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    most = cam.amax(dim=(1, 2), keepdim=True)
    return cam / most.masked_fill(most == 0, 1)
