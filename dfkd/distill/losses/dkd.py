"""Decoupled knowledge distillation: separate terms for the target class and for the other classes."""

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
    """The probability of the teacher's most probable class and the distribution over the others, separately.

        T^2 * (alpha * KL(b_t || b_s) + beta * KL(r_t || r_s))

    b [batch, 2] holds the softened probability of the target class and that of all others together. r [batch, classes -
    1] is the softmax over the others alone. Indices t and s are teacher and student. T is the `temperature`. The value
    is averaged over the batch.

        KL of the whole distributions = KL(b_t || b_s) + (1 - b_t of the target) * KL(r_t || r_s)

    In `kd` a confident teacher therefore suppresses the second term; here it does not. With two classes r is one value,
    and its term is 0.

    The target class is the label in the paper (arXiv 2203.08679). Images are unlabeled here, so the teacher's most
    probable class replaces it. The authors' code (mdistiller) removes the target from r by subtracting 1000 from its
    logit. The target then keeps some probability if logits are far apart. That code also takes the logarithm of b,
    which is infinite if a probability underflows. Ours is exact: it leaves out the target's column. Its b is the
    softmax over the target's logit and the logsumexp of the others.

    `alpha` and `temperature` are those of the authors' code for CIFAR-100. Its `beta` is 8 for five of eleven pairs,
    and 6 or 2 for the others. The paper uses a larger beta for a more confident teacher. `weight` 1 is that of the
    paper's CIFAR-100 setting. That setting adds the cross-entropy with the label. It raises the weight of the loss from
    0 over 20 epochs, at a learning rate of 0.05 or, for mobile networks, 0.01. Neither is done here, and the gradient
    is several times as large as that of `kd`. At SGD's default rate use a weight near 0.2, or a lower `--lr`.

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
        """Compute the loss of a batch."""
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
