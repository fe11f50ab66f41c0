"""SRD: the student's features, judged by the teacher's classifier."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.distill import align
from dfkd.distill.loss import Loss
from dfkd.distill.setting import Setting
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError
from dfkd.system.limits import check_at_least
from dfkd.system.paper import Paper


class SRD(Loss):
    """Semantic representational distillation: the teacher's classifier judges the features of both networks.

        mean of (W C(s) + b - z)^2  +  feature * mean of (C(s) - t)^2

    s is the student's deepest map [batch, channels, height, width]. t is the teacher's last feature [batch, width], and
    z are the teacher's logits. W and b are the teacher's last linear layer, which is frozen. C is a 1x1 convolution to
    the teacher's width with batch normalization and ReLU, averaged over the map. Both means are over images and values.
    The loss is 0 if C(s) = t.

    The paper (arXiv 2205.06701) calls W C(s) + b the cross-network logit. It is meant for unlabeled images of other
    classes than the teacher's. The second term is in the authors' code, with `feature` = 1, or 10 for ShuffleNet. This
    loss does not train the student's own last layer. Add one on the logits, as in `--loss kd srd`.

    Raises: RequestError for feature < 0, and for a student without a map. Also for a teacher whose logits do not come
    from a linear layer with the tap `last` as its input.
    """

    family = "features"
    per_image = True
    paper = Paper("Knowledge distillation meets open-set semi-supervised learning", 2022, "2205.06701")
    taps = ("stage", "last")

    def __init__(self, feature: float = 1.0) -> None:
        super().__init__()
        check_at_least(0, feature=feature)
        self.feature = feature
        self._head: tuple[nn.Linear, ...] = ()  # in a tuple: not registered as a submodule

    def bind(self, setting: Setting) -> None:
        """Keep the teacher's last linear layer."""
        if setting.teacher_head is None:
            raise RequestError(
                "srd needs a teacher whose logits come from a linear layer with the tap 'last' as its input; "
                "use another loss on features, such as fitnet"
            )
        self._head = (setting.teacher_head,)

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """Build the connector, with weights from torch's random state."""
        ours, theirs = self._pair(student, teacher)
        align.check_head("srd", theirs, self._head[0], "teacher")
        self.connector = align.connector(ours, theirs.shape[1]).append(nn.ReLU())

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        ours, theirs = self._pair(student, teacher)
        connected = align.averaged(align.apply(self.connector, ours))
        (head,) = self._head
        logits = F.linear(connected, head.weight.detach(), None if head.bias is None else head.bias.detach())
        semantic = F.mse_loss(logits, align.full(teacher.logits))
        return semantic + self.feature * F.mse_loss(connected, theirs)

    def _pair(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        """Return the student's deepest map, and the teacher's last feature [batch, width]."""
        return align.map_pairs("stage", student, teacher)[-1][0], align.vectors(teacher)
