"""Knowledge distillation on standardized logits: what is taught is their order and proportions, not their scale."""

from jaxtyping import Float
from torch import Tensor

from dfkd.distill.align import full
from dfkd.distill.distributions import kl
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.limits import check_above
from dfkd.system.paper import Paper


class Standardized(Loss):
    """The teacher's logits up to scale and shift: the softened distribution over z-scores.

    temperature^2 * KL(softmax(z(t) / temperature) || softmax(z(s) / temperature)), averaged over the batch, where z
    subtracts a logit vector's mean and divides by its standard deviation over the classes: every image has a
    temperature of its own, in proportion to the spread of its logits, in teacher and student apart.

    The standard deviation is the paper's, with 1 / classes under the root; the authors' code has 1 / (classes - 1),
    which for 10 classes is as if the temperature were 5 % higher, and not defined for one class. `temperature` (2) and
    `weight` (9) are those of the authors' commands for CIFAR-100, where cross-entropy to the label is added; labels are
    not known here.

    Below `epsilon` the standard deviation counts as `epsilon`, so that equal logits have a defined, flat distribution;
    above it nothing is added (the code adds 1e-7 to it). The gradient grows as 1 / standard deviation, and a student
    that starts with equal logits needs that to be bounded: with 0.001 it is 1000 times that of z.

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
        """The loss of a batch."""
        ours, theirs = (self._z(outputs.logits) / self.temperature for outputs in (student, teacher))
        return kl(theirs.softmax(dim=1), ours.log_softmax(dim=1)) * self.temperature**2

    def _z(self, logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        centered = full(logits) - full(logits).mean(dim=1, keepdim=True)
        # clamped under the root: the root of 0 has an infinite gradient
        return centered / centered.square().mean(dim=1, keepdim=True).clamp_min(self.epsilon**2).sqrt()
