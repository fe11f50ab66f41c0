"""Check of a classifier's logits on a few images: in a batch, in another order, and one image alone."""

from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dfkd.system import random_state
from dfkd.system.console import say

CHECKED_IMAGES = 4

Ask = Callable[[Tensor], Tensor]
"""Function from pixels [batch, height, width, channels] to logits."""


def check_health(ask: Ask, pixels: UInt8[Tensor, "batch height width channels"], spec: str, exact: bool) -> None:
    """Print in one line that the logits of a few images are valid, or a note for each fault.

    `exact` tells whether the logits are computed in float32. Random states do not change.
    Raises: RequestError if the classifier rejects the images.
    """
    if len(pixels) < 2:
        return
    order = torch.arange(len(pixels)).flip(0)
    with torch.no_grad(), random_state.kept():
        answers, turned, alone = (ask(one).float().cpu() for one in (pixels, pixels[order], pixels[:1]))
        again = answers if torch.equal(turned[order], answers) else ask(pixels).float().cpu()
    if answers.ndim != 2 or turned.shape != answers.shape or alone.shape != answers[:1].shape:
        return
    found = _faults(answers, again, turned[order], alone, 1e-3 if exact else 2e-2, 2e-2 if exact else 0.1)
    found += [fault for fault in (_kind(answers),) if fault]
    if answers.isfinite().all() and (answers == answers[0]).all() and not (pixels == pixels[0]).all():
        found.append("gives one answer to every image")
    for fault in found:
        say(f"note: {spec} {fault}")
    if not found:
        say(f"{spec} on {len(pixels)} images: answers are finite, repeatable, logits, and the same in any batch")


def _faults(
    answers: Float[Tensor, "batch classes"],
    again: Float[Tensor, "batch classes"],
    turned: Float[Tensor, "batch classes"],
    alone: Float[Tensor, "one classes"],
    same: float,
    near: float,
) -> list[str]:
    """Return what is wrong if logits are not finite or not repeatable.

    `same` and `near` are tolerances, as shares of the largest logit.
    """
    if not answers.isfinite().all():
        bad = int((~answers.isfinite().all(dim=1)).sum())
        return [f"gives no finite answer to {bad} of {len(answers)} images: check its weights and --normalize"]
    scale = float(answers.abs().max())
    if float((again - answers).abs().max()) > same * scale:
        return ["answers the same image differently each time (dropout that .eval() does not end?): results are random"]
    if max(float((turned - answers).abs().max()), float((alone - answers[:1]).abs().max())) > near * scale:
        return ["answers an image differently with other images in its batch: results depend on --batch-size"]
    return []


def _kind(answers: Float[Tensor, "batch classes"]) -> str | None:
    """Return what the rows are if they are not logits, else None."""
    if not answers.isfinite().all():
        return None
    least, most = float(answers.min()), float(answers.max())
    if least >= 0 and least < most <= 1 + 1e-3:
        return "gives values in [0, 1] (sigmoid?), not logits: confidences are too low; remove its last sigmoid"
    if most <= 0 and bool(((answers.exp().sum(dim=1) - 1).abs() < 1e-2).all()):
        return "gives log-probabilities (log-softmax), not logits: their softmax is right, other losses may differ"
    return None


def are_probabilities(answers: Float[Tensor, "batch classes"]) -> bool:
    """Return whether each row is a softmax output: no value below 0, and a sum of 1 up to rounding."""
    return bool((answers >= 0).all() and ((answers.float().sum(dim=1) - 1).abs() < 1e-3).all())
