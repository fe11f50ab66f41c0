"""Label-noise adaptation: the teacher's predictions on images of another domain as labels, some of which are wrong."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.distill.align import full
from dfkd.distill.distributions import others
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.limits import Range
from dfkd.system.paper import Paper


class Noise(Loss):
    """The teacher's most probable class, through a learned matrix of the teacher's errors.

        -log (softmax(s) Q)_y
        Q_ii = accuracy,   Q_ij = (1 - accuracy) * softmax(W_i)_j

    s are the student's logits [batch, classes]. y is the teacher's most probable class. The value is averaged over the
    batch. Row i of Q is the distribution of the teacher's predictions for images of class i. W [classes, classes - 1]
    is learned and starts at zero, so all errors are equally likely at first. The student's own output models the class
    without the teacher's errors.

    This is the noise term of the paper's method (DFND, Chen et al., CVPR 2021). The whole method is `--loss kd noise`,
    both with `weight` 1 and `kd` at temperature 4. W trains with the student's optimizer, including weight decay. The
    authors' code trains W by Adam at learning rate 0.001. `accuracy` is the teacher's accuracy on its own data. The
    authors' code has 0.9523 for CIFAR-10 and 0.7774 for CIFAR-100. Set the accuracy of your teacher if you know it.

    The minimum is -log accuracy, not 0, for an accuracy of at least 1/2. A student that is certain of the teacher's
    class reaches it. With two classes there is only one kind of error, and W has nothing to learn. The computation uses
    logarithms throughout.

    Raises: RequestError unless 0 < accuracy < 1.
    """

    family = "outputs"
    per_image = True
    paper = Paper(
        "Learning student networks in the wild",
        2021,
        "https://openaccess.thecvf.com/content/CVPR2021/html/Chen_Learning_Student_Networks_in_the_Wild_CVPR_2021_paper.html",
    )
    errors: nn.Parameter
    """W [classes, classes - 1], before the softmax over each row; row i leaves out class i."""

    def __init__(self, accuracy: float = 0.95) -> None:
        super().__init__()
        Range(above=0, below=1).check(accuracy=accuracy)
        self.accuracy = accuracy

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """Build W for the teacher's classes."""
        classes = teacher.logits.shape[1]
        self.errors = nn.Parameter(torch.zeros(classes, classes - 1, device=teacher.logits.device))

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        log_q, target = full(student.logits).log_softmax(dim=1), teacher.logits.argmax(dim=1)
        return -(log_q + self._log_matrix()[:, target].T).logsumexp(dim=1).mean()

    def _log_matrix(self) -> Float[Tensor, "classes classes"]:
        classes = len(self.errors)
        right = self.errors.new_full((classes, classes), math.log(self.accuracy))
        beside = others(torch.arange(classes, device=right.device), classes)
        return right.scatter(1, beside, math.log1p(-self.accuracy) + self.errors.log_softmax(dim=1))
