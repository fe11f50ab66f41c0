"""SimKD: mean squared error on the last feature, with an option to reuse the teacher's classifier."""

from typing import Literal

import torch
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


class SimKD(Loss):
    """The teacher's last feature, by a projector on the student's side; its classifier can be reused.

        mean of (P(s) - t)^2

    s and t are the features of student and teacher, and P is the projector. The loss is 0 if P(s) = t.

    In the paper (arXiv 2203.14001) the student runs with the projector and the teacher's classifier behind it. It is
    trained by this loss alone. Here the exported student keeps its architecture, so there are two ways:

    - `projector=conv`, the default, is the paper's: 1x1, 3x3 and 1x1 convolutions on the deepest stage's map [batch,
      channels, height, width]. They have batch normalization, ReLU and a bottleneck of the teacher's width / `factor`.
      This trains the features only. Add a loss for the student's last layer, as in `--loss kd simkd`.
    - `reuse=true` needs `projector=linear`, on the last linear layer's input [batch, width]. After the last step, the
      student's last layer becomes the teacher's after the projector: W = W_t P and b = W_t p + b_t. This is exact.
      Before that, this loss does not train the student's last layer. The agreement and other losses on the logits then
      refer to a layer that is replaced. `--loss simkd:reuse=true` alone is the paper's way.

    The first is the default because it is the paper's projector and works on any pair of networks. Maps of different
    resolution are average-pooled to the smaller one, as in the authors' code.

    Raises: RequestError for reuse with projector=conv, for factor < 1, and for features of another shape. Also for
    reuse if a network's logits do not come from a linear layer with the tap `last` as its input. Also for reuse if the
    student's layer has no bias.
    """

    family = "features"
    per_image = True
    paper = Paper("Knowledge distillation with the reused teacher classifier", 2022, "2203.14001")
    taps = ("stage",)

    def __init__(
        self, reuse: bool = False, projector: Literal["conv", "linear"] | None = None, factor: int = 2
    ) -> None:
        super().__init__()
        if reuse and projector == "conv":
            raise RequestError("reuse=true cannot put projector=conv into the student's last layer; use linear")
        check_at_least(1, factor=factor)
        self.reuse, self.factor = reuse, factor
        self.linear = reuse or projector == "linear"
        if self.linear:
            self.taps = ("last",)
        self._heads: tuple[nn.Linear, nn.Linear] | None = None  # in a tuple: not registered as submodules

    def bind(self, setting: Setting) -> None:
        """Keep the networks' last layers if the teacher's is to be reused."""
        if not self.reuse:
            return
        ours, theirs = setting.student_head, setting.teacher_head
        for head, who in ((ours, "student"), (theirs, "teacher")):
            if head is None:
                raise RequestError(
                    f"reuse=true needs a {who} whose logits come from a linear layer with the tap 'last' as its "
                    "input; leave reuse out and add kd"
                )
        assert ours is not None and theirs is not None
        if ours.bias is None:
            raise RequestError("reuse=true needs a bias in the student's last layer; leave reuse out and add kd")
        if ours.out_features != theirs.out_features:
            raise RequestError(
                f"reuse=true cannot put the teacher's {theirs.out_features} classes into the student's "
                f"{ours.out_features}; give the student as many"
            )
        self._heads = ours, theirs

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """Build the projector, with weights from torch's random state."""
        ours, theirs = self._pair(student, teacher)
        width = theirs.shape[1]
        if self._heads is not None:
            for feature, head, who in zip((ours, theirs), self._heads, ("student", "teacher"), strict=True):
                align.check_head("reuse=true", feature, head, who)
        if self.linear:
            self.projector = align.projection(ours, width, always=True, bias=True)
        else:
            self.projector = _convolutions(ours.shape[1], max(1, width // self.factor), width).to(ours.device)

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        ours, theirs = self._pair(student, teacher)
        return F.mse_loss(align.apply(self.projector, ours), align.full(theirs))

    @torch.no_grad()
    def finish(self) -> None:
        """With `reuse`, write projector and teacher's last layer into the student's; a second call changes nothing."""
        if self._heads is None:
            return
        ours, theirs = self._heads
        projector, weight = self.projector, theirs.weight.double()
        assert isinstance(projector, nn.Linear)
        bias = weight @ projector.bias.double()
        ours.weight.copy_(weight @ projector.weight.double())
        ours.bias.copy_(bias if theirs.bias is None else bias + theirs.bias.double())

    def _pair(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        if self.linear:
            return align.last_pair(student, teacher)
        return align.same_size(*align.map_pairs("stage", student, teacher)[-1])


def _convolutions(width: int, middle: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(width, middle, 1, bias=False), align.BatchNorm(middle), nn.ReLU()),
        *(nn.Conv2d(middle, middle, 3, padding=1, bias=False), align.BatchNorm(middle), nn.ReLU()),
        *(nn.Conv2d(middle, out, 1, bias=False), align.BatchNorm(out), nn.ReLU()),
    )
