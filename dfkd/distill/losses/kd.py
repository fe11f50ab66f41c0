"""Knowledge distillation on the softened outputs."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.errors import RequestError
from dfkd.outputs import Outputs


class KD(nn.Module):
    """KL divergence from the teacher's to the student's softened distribution, times the temperature squared.

    Distilling the knowledge in a neural network, 2015, https://arxiv.org/abs/1503.02531. Averaged over the batch.
    Where the teacher's outputs carry a class-dropping mask, its distribution is renormalized over the kept classes and
    the student keeps its full softmax, so that one kept class still teaches; the rule is our reading of
    https://arxiv.org/abs/2302.08771.

    Raises: RequestError unless temperature > 0.
    """

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise RequestError(f"kd:temperature={temperature:g} is not above 0")
        self.temperature = temperature

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """The loss of a batch."""
        target = teacher.logits / self.temperature
        if teacher.kept is not None:
            target = target.masked_fill(~teacher.kept, -torch.inf)
        p = target.softmax(dim=1)
        log_q = (student.logits / self.temperature).log_softmax(dim=1)
        # xlogy: a dropped class has p = 0 and adds 0, where p * log p would be NaN
        divergence = (torch.xlogy(p, p) - p * log_q).sum(dim=1).mean()
        return divergence * self.temperature**2
