"""Data-distortion guided self-distillation: equal outputs for two views of an image."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dfkd.data.images.augment import crop, draw_crops
from dfkd.distill.align import averaged, check_shape, full
from dfkd.distill.loss import Loss
from dfkd.distill.setting import Setting
from dfkd.models.features.outputs import Outputs
from dfkd.system.limits import check_above, check_at_least
from dfkd.system.paper import Paper


class DDGSD(Loss):
    """The student's own output for another view of the image, and the teacher's most probable class for both.

        T^2 * (KL(p1 || p2) + KL(p2 || p1)) + features * ||mean f1 - mean f2||^2 + hard * (CE(s1, y) + CE(s2, y))

    s1 and s2 are the student's logits [batch, classes] for the view of the step and for another one. p1 and p2 are
    softmax(s / T), with the `temperature` T. f1 and f2 are the inputs of the last linear layer [batch, width]. Their
    means are over the batch. The squared distance is the maximum mean discrepancy with a linear kernel. y is the
    teacher's most probable class for the first view. CE is the cross-entropy. Both views get gradients.

    The second view is the first one, shifted by up to `padding` pixels in both directions (by default an eighth of the
    image). It is mirrored with probability 1/2 unless flip=false. The student runs twice in each step.

    In the paper (AAAI 2019) y is the image's label, and both views are drawn from the image. Images are unlabeled here.
    The paper's formulas were not available: the terms are those that its abstract names, and their weights are ours.

    Raises: RequestError unless temperature > 0, and the weights and the padding are at least 0.
    """

    family = "students"
    paper = Paper(
        "Data-distortion guided self-distillation for deep neural networks",
        2019,
        "https://ojs.aaai.org/index.php/AAAI/article/view/4498",
    )
    taps = ("last",)
    reads_view = True
    setting: Setting

    def __init__(
        self,
        temperature: float = 3.0,
        features: float = 0.01,
        hard: float = 1.0,
        padding: int | None = None,
        flip: bool = True,
    ) -> None:
        super().__init__()
        check_above(temperature=temperature)
        check_at_least(features=features, hard=hard, padding=padding or 0)
        self.temperature, self.features, self.hard, self.padding, self.flip = temperature, features, hard, padding, flip

    def bind(self, setting: Setting) -> None:
        """Keep the student, which runs on the second view."""
        self.setting = setting

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        assert teacher.view is not None
        other = self.setting.student(self._moved(teacher.view))
        label = teacher.logits.argmax(dim=1)
        sides = [full(outputs.logits) for outputs in (student, other)]
        log_p = [(logits / self.temperature).log_softmax(dim=1) for logits in sides]
        # both divergences in one sum, whose gradient stays finite where a probability is 0
        both = ((log_p[0].exp() - log_p[1].exp()) * (log_p[0] - log_p[1])).sum(dim=1).mean()
        total = both * self.temperature**2
        if self.features:
            check_shape("last", student.features["last"])
            first, second = (averaged(full(outputs.features["last"])).mean(dim=0) for outputs in (student, other))
            total = total + self.features * (first - second).square().sum()
        return total + self.hard * sum(F.cross_entropy(logits, label) for logits in sides)

    def _moved(self, view: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        """Return the second view; pixels from beyond the edge are 0, the mean of the normalization."""
        padding = view.shape[2] // 8 if self.padding is None else self.padding
        crops = draw_crops(len(view), padding, self.flip, None, view.device)
        return crop(view.permute(0, 2, 3, 1), padding, crops).permute(0, 3, 1, 2)
