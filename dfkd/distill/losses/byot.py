"""Be your own teacher: heads after the earlier stages learn from the student's own output."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.distill import align
from dfkd.distill.distributions import kl
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError
from dfkd.system.limits import SHARE, check_above, check_at_least
from dfkd.system.paper import Paper


class BYOT(Loss):
    """The student's own output, for a head after each of its earlier stages, and the teacher's most probable class.

        CE(softmax(s), y) + sum over heads of
            (1 - alpha) CE(softmax(z), y) + alpha T^2 KL(softmax(s / T) || softmax(z / T)) + features MSE(f, F)

    s are the student's logits [batch, classes], and F is the map of its deepest stage. z and f are the logits and the
    map of a head. y is the teacher's most probable class, and T is the `temperature`. CE is the cross-entropy, MSE the
    mean squared difference of the elements. In the sum s and F are constants: the heads learn from them. Values are
    averaged over the batch.

    A head halves the resolution of its stage's map by 3x3 convolutions with stride 2. Each doubles the width, up to
    that of F. A 1x1 convolution gives the width of F. Batch normalization and ReLU follow each convolution, and their
    output is f. A linear layer on the mean of f gives z. The heads are dropped after the training. Their gradients have
    trained the earlier stages. Before that, `--test` also measures each head, as an early exit.

    In the paper (arXiv 1905.08094) y is the image's label. Images are unlabeled here. The paper writes the squared
    distance of the features, a sum. The mean and the weights `alpha` and `features` are ours. The student needs maps of
    two resolutions, and so does the teacher: only stages that both networks have are found.

    Raises: RequestError unless 0 < alpha <= 1, temperature > 0 and features >= 0. Also for fewer than two stages.
    """

    family = "students"
    paper = Paper(
        "Be your own teacher: Improve the performance of convolutional neural networks via self distillation",
        2019,
        "1905.08094",
    )
    taps = ("stage",)

    def __init__(self, alpha: float = 0.3, temperature: float = 3.0, features: float = 0.03) -> None:
        super().__init__()
        SHARE.check(alpha=alpha)
        check_above(temperature=temperature)
        check_at_least(features=features)
        self.alpha, self.temperature, self.features = alpha, temperature, features
        self.heads = nn.ModuleList()

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """Build a head for each stage but the deepest, with weights from torch's random state."""
        *earlier, deepest = self._maps(student)
        for x in earlier:
            self.heads.append(_Head(x, deepest, student.logits.shape[1]))
        self.to(student.logits.device)

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        *earlier, deepest = self._maps(student)
        logits, label = align.full(student.logits), teacher.logits.argmax(dim=1)
        fixed = align.full(deepest).detach()
        target = (logits.detach() / self.temperature).softmax(dim=1)
        total = F.cross_entropy(logits, label)
        for head, x in zip(self.heads, earlier, strict=True):
            with align.precision_of(x):
                said, feature = (align.full(y) for y in head(x))
            soft = kl(target, (said / self.temperature).log_softmax(dim=1)) * self.temperature**2
            total = total + (1 - self.alpha) * F.cross_entropy(said, label) + self.alpha * soft
            total = total + self.features * F.mse_loss(feature, fixed)
        return total

    def exits(self, student: Outputs) -> list[Tensor]:
        """Return the logits [batch, classes] of each head, from the shallowest."""
        *earlier, _ = self._maps(student)
        return [head(align.full(x))[0] for head, x in zip(self.heads, earlier, strict=True)]

    def _maps(self, student: Outputs) -> list[Tensor]:
        """Return the student's maps, from the shallowest."""
        maps = student.group("stage")
        align.check_shape("stage", *maps, dimensions=(4,))
        if len(maps) < 2:
            raise RequestError("the student has feature maps of one resolution, and two are needed; leave the loss out")
        return maps


class _Head(nn.Module):
    """Layers from the map of a stage to logits, and to a map of the deepest stage's shape."""

    def __init__(self, x: Float[Tensor, "batch _ _ _"], deepest: Float[Tensor, "batch _ _ _"], classes: int) -> None:
        super().__init__()
        width, self.size = x.shape[1], (deepest.shape[2], deepest.shape[3])
        shrink: list[nn.Module] = []
        height, columns = x.shape[2:]
        while height > self.size[0] and columns > self.size[1] and -(-height // 2) >= self.size[0]:
            wider = min(2 * width, deepest.shape[1])
            shrink.append(_block(width, wider, 3))
            width, height, columns = wider, -(-height // 2), -(-columns // 2)
        self.shrink = nn.Sequential(*shrink)
        self.widen = _block(width, deepest.shape[1], 1)
        self.linear = nn.Linear(deepest.shape[1], classes)

    def forward(
        self, x: Float[Tensor, "batch width h w"]
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch _ _ _"]]:
        """Return the logits and the map."""
        x = self.shrink(x)
        if x.shape[2:] != self.size:
            x = F.adaptive_avg_pool2d(x, self.size)
        feature = self.widen(x)
        return self.linear(feature.mean(dim=(2, 3))), feature


def _block(width: int, out: int, kernel: int) -> nn.Sequential:
    """Build a convolution with batch normalization and ReLU; a 3x3 convolution has stride 2."""
    conv = nn.Conv2d(width, out, kernel, stride=2 if kernel == 3 else 1, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, align.BatchNorm(out), nn.ReLU())
