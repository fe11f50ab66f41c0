"""What a step observes of student and teacher, whatever the losses are."""

import torch
from jaxtyping import Float
from torch import Tensor

from dfkd.distill.distributions import TEMPERATURE, kl_of_each
from dfkd.models.features.outputs import Outputs


def observe(ours: Outputs, theirs: Outputs) -> dict[str, Tensor]:
    """Return the agreement in the batch, and the mean entropy of both networks in nats: they show an unhealthy run."""
    with torch.no_grad():
        agreement = (ours.logits.argmax(dim=1) == theirs.logits.argmax(dim=1)).float().mean()
        entropies = [entropy(outputs.logits.softmax(dim=1)) for outputs in (ours, theirs)]
    return {"agreement": agreement, "student_entropy": entropies[0], "teacher_entropy": entropies[1]}


@torch.no_grad()
def divergences(ours: Outputs, theirs: Outputs) -> Float[Tensor, " batch"]:
    """Return the KL divergence of the student from the teacher on each image, at the temperature of plain `kd`.

    This measure is the same for all losses.
    """
    target, logits = (outputs.logits / TEMPERATURE for outputs in (theirs, ours))
    return kl_of_each(target.softmax(dim=1), logits.log_softmax(dim=1))


def entropy(p: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Return the entropy of probabilities in nats, averaged over the batch."""
    return -torch.xlogy(p, p).sum(dim=1).mean()
