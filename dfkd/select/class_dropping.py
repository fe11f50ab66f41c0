"""Class dropping: classes to which the teacher gives little confidence are treated as noise of the domain shift.

Explicit and implicit knowledge distillation via unlabeled data, https://arxiv.org/abs/2302.08771, describes a
confidence mask. Its exact rule was not available. The rule here, a probability floor, is our reading.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def kept_classes(logits: Float[Tensor, "batch classes"], floor: float) -> Bool[Tensor, "batch classes"]:
    """Return a mask of the classes whose probability is at least `floor`. The largest is always kept."""
    probabilities = torch.softmax(logits.float(), dim=1)
    kept = probabilities >= floor
    return kept.scatter(1, probabilities.argmax(dim=1, keepdim=True), True)
