"""Conditional adversarial distillation: a discriminator learns to tell student from teacher by their logits."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from dfkd.distill.align import full, unit
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.paper import Paper

_LEAST_SCALE = 1e-3


class CGAN(Loss):
    """The distribution of the teacher's logits, by a discriminator that tells the student's from them.

        student:         (softplus(-d(s)) + CE(c(s), y)) / 2
        discriminator:   (softplus(-d(t)) + softplus(d(s)) + CE(c(t), y) + CE(c(s), y)) / 2

    s and t are the logits [batch, classes] of student and teacher. y is the teacher's most probable class. For logits
    z, d(z) is the log-odds that they are the teacher's, and c(z) are logits of the class. CE is the cross-entropy. Both
    lines are averaged over the batch. The first is the value of the loss. Both are minimized in the same step, each
    with the other held fixed. `weight` scales the student's part, not the discriminator's.

    The paper's formulas were not available. Summaries of it describe the student as a generator conditioned on the
    image, hence the name. They describe the discriminator as a perceptron on logits. The rest follows public code with
    such a discriminator (Compressing deep graph neural networks via adversarial knowledge distillation, 2022,
    https://arxiv.org/abs/2205.11678):

    - The discriminator is not told the class but predicts it: c and d are one output.
    - It has one hidden layer, as wide as there are classes, with a shortcut and ReLU.
    - The halves and `weight` 1 are from there.
    - The student minimizes -log of the probability to fool. Its gradient does not vanish where the discriminator is
      certain.
    - There, y is the image's label. Images are unlabeled here, and the teacher's most probable class stands in for it.
    - There, the two are updated in turns. The L1 distance of the logits is added, which is `logits:norm=l1` here.

    Ours, because one optimizer trains both, by SGD at rates as high as 0.4:

    - The logits of each image are centered and divided by a scale. It is the root mean square of the batch's teacher
      logits, and at least 0.001. A shift carries no information, and the teacher's scale does not matter.
    - Each row of the two layers' weights, with its bias, counts by its direction alone. Its gradient is then orthogonal
      to it and falls with its length, to which every step adds. No rate makes it diverge. c and d are no larger than
      the layer's input.

    The loss is not 0 at equality. Where student and teacher cannot be told apart, d is 0. The class term still pulls
    the student to be certain of y. The discriminator checks the distribution over the batch, not the logits of an
    image. Add `cgan` to a loss that teaches each image, as in `--loss kd cgan`.
    """

    family = "outputs"
    paper = Paper(
        "Training shallow and thin networks for acceleration via knowledge "
        "distillation with conditional adversarial networks",
        2017,
        "1709.00513",
    )
    hidden: nn.Parameter
    """[classes, classes + 1]: the hidden layer's rows, each with its bias behind."""
    output: nn.Parameter
    """[classes + 1, classes + 1]: the rows of c and, last, of d."""

    def __init__(self) -> None:
        super().__init__()  # written out, for nn.Module's takes any option

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """Build the discriminator for the teacher's classes; it is drawn from torch's random state."""
        width, device = teacher.logits.shape[1], teacher.logits.device
        self.hidden = nn.Parameter(unit(torch.randn(width, width + 1, device=device)))
        self.output = nn.Parameter(unit(torch.randn(width + 1, width + 1, device=device)))

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """The student's loss of a batch; it carries the discriminator's own gradient along."""
        target = teacher.logits.argmax(dim=1)
        theirs = _centered(teacher.logits)
        scale = theirs.square().mean().sqrt().clamp_min(_LEAST_SCALE)
        ours, theirs = _centered(student.logits) / scale, theirs / scale
        layers, frozen = (self.hidden, self.output), (self.hidden.detach(), self.output.detach())
        fooling = _cost(_judged(ours, *frozen), target, teachers=True)
        telling = _cost(_judged(theirs, *layers), target, teachers=True)
        telling = telling + _cost(_judged(ours.detach(), *layers), target, teachers=False)
        if telling.requires_grad:  # 1 instead of the gradient that comes in, which is the loss's weight
            telling.register_hook(torch.ones_like)
        return fooling + (telling - telling.detach())


def _centered(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    return full(logits) - full(logits).mean(dim=1, keepdim=True)


def _judged(
    x: Float[Tensor, "batch classes"],
    hidden: Float[Tensor, "classes inputs"],
    output: Float[Tensor, "inputs inputs"],
) -> Float[Tensor, "batch inputs"]:
    """c and, in the last column, d."""
    return _linear((x + _linear(x, hidden)).relu(), output)


def _linear(x: Float[Tensor, "batch width"], rows: Float[Tensor, "out inputs"]) -> Float[Tensor, "batch out"]:
    """A linear layer with bias, whose rows are taken at length 1."""
    return F.linear(F.pad(x, (0, 1), value=1.0), unit(rows))


def _cost(judged: Float[Tensor, "batch outputs"], target: Int[Tensor, " batch"], teachers: bool) -> Float[Tensor, ""]:
    """What it costs that the discriminator does not take the logits for the teacher's (or, else, the student's)."""
    d = judged[:, -1]
    return (F.softplus(-d if teachers else d).mean() + F.cross_entropy(judged[:, :-1], target)) / 2
