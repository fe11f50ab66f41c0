"""Class dropping: within a sample, the classes that the teacher gives little confidence are noise of the domain shift.

Explicit and implicit knowledge distillation via unlabeled data, https://arxiv.org/abs/2302.08771, describes a
confidence mask; its exact rule is not at hand, and the one here (a probability floor) is our reading.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def kept_classes(logits: Float[Tensor, "batch classes"], floor: float) -> Bool[Tensor, "batch classes"]:
    """True for the classes whose probability is at least `floor`, and always for the largest one."""
    probabilities = torch.softmax(logits.float(), dim=1)
    kept = probabilities >= floor
    return kept.scatter(1, probabilities.argmax(dim=1, keepdim=True), True)
