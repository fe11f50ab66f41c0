"""Knowledge distillation on standardized logits: scale and shift of the teacher's logits are not matched."""

from jaxtyping import Float
from torch import Tensor

from dfkd.distill.align import full
from dfkd.distill.distributions import kl
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.limits import check_above
from dfkd.system.paper import Paper


class Standardized(Loss):
    """The teacher's logits up to scale and shift, by the softened distribution over z-scores.

        T^2 * KL(softmax(z(t) / T) || softmax(z(s) / T))
        z(x) = (x - mean of x) / standard deviation of x

    s and t are the logits [batch, classes] of student and teacher, and T is the `temperature`. Mean and standard
    deviation are taken over the classes of one image. The value is averaged over the batch. Each image thus has its own
    temperature, proportional to the spread of its logits, separately for teacher and student.

    The standard deviation is that of the paper (arXiv 2403.01427), with 1 / classes under the root. The authors' code
    has 1 / (classes - 1). For 10 classes this equals a temperature 5 % higher, and it is undefined for one class.
    `temperature` (2) and `weight` (9) are those of the authors' commands for CIFAR-100. These commands add the
    cross-entropy with the label; labels are not known here.

    A standard deviation below `epsilon` counts as `epsilon`. Equal logits therefore have a defined, uniform
    distribution. Above `epsilon` nothing is added; the authors' code adds 1e-7. The gradient grows as 1 / standard
    deviation. A student that starts with equal logits needs a bound: with 0.001 it is 1000 times the gradient of z.

    Raises: RequestError unless temperature and epsilon > 0.
    """

    family = "outputs"
    per_image = True
    paper = Paper("Logit standardization in knowledge distillation", 2024, "2403.01427")
    weight = 9.0

    def __init__(self, temperature: float = 2.0, epsilon: float = 1e-3) -> None:
        super().__init__()
        check_above(temperature=temperature, epsilon=epsilon)
        self.temperature, self.epsilon = temperature, epsilon

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        ours, theirs = (self._z(outputs.logits) / self.temperature for outputs in (student, teacher))
        return kl(theirs.softmax(dim=1), ours.log_softmax(dim=1)) * self.temperature**2

    def _z(self, logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        centered = full(logits) - full(logits).mean(dim=1, keepdim=True)
        # clamp under the root, because the root of 0 has an infinite gradient
        return centered / centered.square().mean(dim=1, keepdim=True).clamp_min(self.epsilon**2).sqrt()
