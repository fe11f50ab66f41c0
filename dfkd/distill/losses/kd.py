"""Knowledge distillation on the softened outputs, with the classes that are dropped from the teacher's answer."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dfkd.errors import RequestError
from dfkd.outputs import Outputs


class KD(nn.Module):
    """KL divergence from the teacher's to the student's softened distribution, times the temperature squared.

    Distilling the knowledge in a neural network, 2015, https://arxiv.org/abs/1503.02531. Averaged over the batch.
    Where the teacher's outputs carry a class-dropping mask (https://arxiv.org/abs/2302.08771, whose formula is not at
    hand; both rules are our reading), `dropped` says what becomes of the classes outside it:
    `bucket` adds them up to one class, in teacher and student alike: how much they hold is taught, its split is not;
    `renormalize` takes them out of the teacher's distribution and leaves the student its full softmax, which drives
    them to 0: at temperatures above 1 this takes out much of what the teacher says.

    Raises: RequestError unless temperature > 0.
    """

    def __init__(self, temperature: float = 4.0, dropped: Literal["bucket", "renormalize"] = "bucket") -> None:
        super().__init__()
        if temperature <= 0:
            raise RequestError(f"kd:temperature={temperature:g} is not above 0")
        self.temperature, self.dropped = temperature, dropped

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """The loss of a batch."""
        target = teacher.logits / self.temperature
        log_q = (student.logits / self.temperature).log_softmax(dim=1)
        if teacher.kept is not None and self.dropped == "renormalize":
            target = target.masked_fill(~teacher.kept, -torch.inf)
        p = target.softmax(dim=1)
        if teacher.kept is not None and self.dropped == "bucket":
            p, log_q = _with_bucket(p, log_q, teacher.kept)
        # xlogy: where p = 0 it adds 0, and p * log p would be NaN
        return (torch.xlogy(p, p) - p * log_q).sum(dim=1).mean() * self.temperature**2


def _with_bucket(
    p: Float[Tensor, "batch classes"], log_q: Float[Tensor, "batch classes"], kept: Bool[Tensor, "batch classes"]
) -> tuple[Float[Tensor, "batch classes_and_bucket"], Float[Tensor, "batch classes_and_bucket"]]:
    """The kept classes' probabilities (others 0) and the sum of the others behind them; the student's in logarithms."""
    rest_p = p.masked_fill(kept, 0).sum(dim=1, keepdim=True)
    rest_q = log_q.exp().masked_fill(kept, 0).sum(dim=1, keepdim=True)
    tiny = torch.finfo(log_q.dtype).tiny  # the student's rest may underflow, or be empty
    log_rest_q = rest_q.clamp_min(tiny).log()
    return torch.cat([p.masked_fill(~kept, 0), rest_p], dim=1), torch.cat([log_q, log_rest_q], dim=1)
