"""Deep mutual learning: each student learns from the predictions of the other students."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dfkd.distill.align import full
from dfkd.distill.distributions import kl
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError
from dfkd.system.limits import check_above, check_at_least
from dfkd.system.paper import Paper


class DML(Loss):
    """The class probabilities of each of the other students, and the teacher's most probable class.

        T^2 * mean over peers of KL(softmax(p / T) || softmax(s / T)) + hard * CE(softmax(s), argmax t)

    s, p and t are the logits [batch, classes] of the student, of another student and of the teacher, for the same view.
    T is the `temperature`. CE is the cross-entropy. The value is averaged over the batch. The other students are those
    of `--also`; no gradient reaches them.

    In the paper (arXiv 1706.00384) CE has the image's label. Images are unlabeled here, so the teacher's most probable
    class replaces it. `hard` is the weight of this term. `--loss kd dml:hard=0` learns from the teacher's whole
    distribution instead.

    The paper's students learn in turns, each from the newest weights of the others. Here all students run on a view,
    and then all take their step. One forward pass of each student is enough.

    Raises: RequestError unless temperature > 0 and hard >= 0, and if there is no other student.
    """

    family = "students"
    per_image = True
    reads_peers = True
    paper = Paper("Deep mutual learning", 2017, "1706.00384")

    def __init__(self, temperature: float = 1.0, hard: float = 1.0) -> None:
        super().__init__()
        check_above(temperature=temperature)
        check_at_least(hard=hard)
        self.temperature, self.hard = temperature, hard

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        ours = full(student.logits)
        log_q = (ours / self.temperature).log_softmax(dim=1)
        each = [kl((full(p) / self.temperature).softmax(dim=1), log_q) for p in peers(teacher)]
        mutual = torch.stack(each).mean() * self.temperature**2
        return mutual + self.hard * F.cross_entropy(ours, teacher.logits.argmax(dim=1)) if self.hard else mutual


def peers(teacher: Outputs) -> tuple[Float[Tensor, "batch classes"], ...]:
    """Return the other students' logits. Raises: RequestError if there are none."""
    if not teacher.peers:
        raise RequestError("there is no other student to learn from; Outputs.peers holds their logits")
    return teacher.peers
