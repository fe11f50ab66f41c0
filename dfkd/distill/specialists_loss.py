"""The loss of the generalist with specialists, an architecture of its own; `--loss specialists` finds it here."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dfkd.distill.align import full
from dfkd.distill.distributions import kl_of_each
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.limits import check_above
from dfkd.system.paper import Paper

__all__ = ["Specialists"]


class Specialists(Loss):
    """For each specialist, hard labels of its special classes and soft labels of the rest, with equal weight.

        sum over specialists of (mean_S CE(softmax(z), argmax t) + T^2 mean_R KL(softmax(t / T) || softmax(z / T))) / 2

    z and t are the logits [batch, classes] of the specialist and of the teacher. S are the images whose most probable
    class, by the teacher, is special to the specialist. R are the other images. T is the `temperature`. CE is the
    cross-entropy. A mean over no images is 0.

    The paper (arXiv 1503.02531) draws half of a specialist's images from its special classes. Here all specialists
    learn from one batch, and the weights 1/2 replace the draw. In the paper the hard labels are the images' own and the
    soft ones the generalist's. Images are unlabeled here, and both are the teacher's.

    This loss is for the student of `--specialists` only.

    Raises: RequestError unless temperature > 0.
    """

    family = "outputs"
    paper = Paper("Distilling the knowledge in a neural network", 2015, "1503.02531")
    student_modules = ("experts", "special")

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        check_above(temperature=temperature)
        self.temperature = temperature

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        t, label = full(teacher.logits), teacher.logits.argmax(dim=1)
        z, special = full(student.features["experts"]), student.features["special"]
        own = special.gather(2, label[:, None, None].expand(-1, special.shape[1], 1))[:, :, 0]
        target = (t / self.temperature).softmax(dim=1)
        total = z.new_zeros(())
        for m in range(z.shape[1]):
            hard = F.cross_entropy(z[:, m], label, reduction="none")
            soft = kl_of_each(target, (z[:, m] / self.temperature).log_softmax(dim=1)) * self.temperature**2
            total = total + (_mean(hard, own[:, m]) + _mean(soft, ~own[:, m])) / 2
        return total


def _mean(values: Float[Tensor, " batch"], of: Tensor) -> Float[Tensor, ""]:
    """Return the mean of the values selected by the mask `of`; 0 if none is selected."""
    return torch.where(of, values, 0.0).sum() / of.sum().clamp_min(1)
