"""Decoupled knowledge distillation: the target class against the rest, and the rest among themselves, apart."""

import torch
from jaxtyping import Float
from torch import Tensor

from dfkd.distill.align import full
from dfkd.distill.distributions import kl, others
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.limits import check_above, check_at_least
from dfkd.system.paper import Paper


class DKD(Loss):
    """The probability of the teacher's most probable class, and the distribution over the other classes, apart.

    temperature^2 * (`alpha` * KL(b_T || b_S) + `beta` * KL(r_T || r_S)), averaged over the batch: b holds two values,
    the softened probability of the target class and of all others together; r is the softmax over the others alone. KL
    of the whole distributions is KL(b_T || b_S) + (1 - b_T of the target) * KL(r_T || r_S); here a confident teacher
    does not silence the second part.

    The target class is the label in the paper; images are unlabelled here, and the teacher's most probable class stands
    in for it. The authors' code (mdistiller) takes the target out of r by subtracting 1000 from its logit, which leaves
    it a probability where logits are far apart, and takes the logarithm of b, which is infinite where a probability
    underflows. Ours is exact: the target's column is left out, and b is the softmax of the target's logit and the
    logsumexp of the others. `alpha`, `beta` (the paper's for most pairs on CIFAR-100; it is larger where the teacher is
    surer) and `temperature` are the paper's. `weight` 1 is that of its CIFAR-100 setting, which adds cross-entropy to
    the label and raises the loss from 0 over 20 epochs at a rate of 0.05; neither is done here, and the loss is several
    times as steep as kd: at the default rate of SGD take a weight near 0.2, or give a lower `--lr`.

    With two classes r is one value, and its part is 0.

    Raises: RequestError unless temperature > 0, alpha and beta >= 0.
    """

    family = "outputs"
    per_image = True
    paper = Paper("Decoupled knowledge distillation", 2022, "2203.08679")

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> None:
        super().__init__()
        check_above(temperature=temperature)
        check_at_least(alpha=alpha, beta=beta)
        self.alpha, self.beta, self.temperature = alpha, beta, temperature

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """The loss of a batch."""
        if student.logits.shape[1] == 1:
            return student.logits.sum() * 0
        target = teacher.logits.argmax(dim=1)
        rest = others(target, student.logits.shape[1])
        binary, among = [], []
        for outputs in (teacher, student):
            logits = full(outputs.logits) / self.temperature
            among.append(logits.gather(1, rest))
            binary.append(
                torch.cat([logits.gather(1, target[:, None]), among[-1].logsumexp(dim=1, keepdim=True)], dim=1)
            )
        target_part, rest_part = (kl(t.softmax(dim=1), s.log_softmax(dim=1)) for t, s in (binary, among))
        return (self.alpha * target_part + self.beta * rest_part) * self.temperature**2
