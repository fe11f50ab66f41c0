"""Class-wise self-knowledge distillation: similar outputs for images of one class."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dfkd.distill.align import full
from dfkd.distill.distributions import TEMPERATURE
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.limits import check_above, check_at_least
from dfkd.system.paper import Paper


class CSKD(Loss):
    """The student's own output for other images of the same predicted class, and that class itself.

        T^2 * mean over pairs of KL(softmax(s' / T) || softmax(s / T)) + hard * CE(softmax(s), y)

    s are the student's logits [batch, classes]. s' are those of another image of the batch with the same y, as
    constants. y is the teacher's most probable class, and T is the `temperature`. CE is the cross-entropy. For each
    image the mean is taken over the others of its class, and then over the images that have one.

    In the paper (arXiv 2003.13964) y is the image's label. Images are unlabeled here. The paper draws one partner for
    each image. `--batches classes:each=2` puts every class into a batch twice. If the batch is larger than twice the
    number of classes, it contains some classes more often. All other images of the class are partners.

    Raises: RequestError unless temperature > 0 and hard >= 0.
    """

    family = "students"
    paper = Paper("Regularizing class-wise predictions via self-knowledge distillation", 2020, "2003.13964")

    def __init__(self, temperature: float = TEMPERATURE, hard: float = 1.0) -> None:
        super().__init__()
        check_above(temperature=temperature)
        check_at_least(hard=hard)
        self.temperature, self.hard = temperature, hard

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        label, logits = teacher.logits.argmax(dim=1), full(student.logits)
        log_q = (logits / self.temperature).log_softmax(dim=1)
        p = log_q.detach().exp()
        partners = (label[:, None] == label).float().fill_diagonal_(0).to(p.dtype)
        each = torch.xlogy(p, p).sum(dim=1) - log_q @ p.T  # [image, partner]
        number = partners.sum(dim=1)
        of_image = (partners * each).sum(dim=1) / number.clamp_min(1)
        alike = of_image.sum() / (number > 0).sum().clamp_min(1) * self.temperature**2
        return alike + self.hard * F.cross_entropy(logits, label) if self.hard else alike
