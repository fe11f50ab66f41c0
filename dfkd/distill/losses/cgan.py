"""Conditional adversarial distillation: a discriminator learns to tell the student's logits from the teacher's."""

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
    """The distribution of the teacher's logits, by a discriminator between student and teacher.

        student:         (softplus(-d(s)) + CE(c(s), y)) / 2
        discriminator:   (softplus(-d(t)) + softplus(d(s)) + CE(c(t), y) + CE(c(s), y)) / 2

    s and t are the logits [batch, classes] of student and teacher. y is the teacher's most probable class. For logits
    z, d(z) is the log-odds that z are the teacher's, and c(z) are class logits. CE is the cross-entropy. Both lines are
    averaged over the batch. The first line is the value of the loss. Both are minimized in the same step, each with the
    other network held fixed. `weight` scales the student's line only, not the discriminator's.

    The formulas of the paper (arXiv 1709.00513) were not available. Summaries describe the student as a generator that
    is conditioned on the image, hence the name. They describe the discriminator as a perceptron on logits. The rest
    follows public code with this kind of discriminator (Compressing deep graph neural networks via adversarial
    knowledge distillation, 2022, https://arxiv.org/abs/2205.11678):

    - The discriminator does not receive the class but predicts it: c and d are parts of one output.
    - The discriminator has one hidden layer with a shortcut and ReLU. The layer has as many units as there are classes.
    - The factors 1/2 and `weight` 1 are from that code.
    - The student minimizes -log of the probability of fooling the discriminator. The gradient of this term does not
      vanish where the discriminator is certain.
    - That code uses the image's label for y. Images are unlabeled here, so the teacher's most probable class replaces
      it.
    - That code updates the two networks in turns. It adds the L1 distance of the logits, which is `logits:norm=l1`
      here.

    Two choices are ours, because one optimizer trains both networks, by SGD at learning rates up to 0.4:

    - The logits of each image are centered and divided by a scale. The scale is the root mean square of the batch's
      teacher logits, and at least 0.001. A shift carries no information, and the teacher's scale does not matter.
    - Each weight row of the two layers, with its bias, is normalized to length 1. Its gradient is then orthogonal to
      the row and shrinks as the row grows. Every step makes the row longer, so no learning rate makes the discriminator
      diverge. c and d are no larger than the norm of the layer's input.

    The loss is not 0 at equality. If student and teacher cannot be told apart, d is 0. The class term still pulls the
    student towards certainty about y. The discriminator compares distributions over the batch, not the logits of one
    image. Add `cgan` to a loss on each image, as in `--loss kd cgan`.
    """

    family = "outputs"
    paper = Paper(
        "Training shallow and thin networks for acceleration via knowledge "
        "distillation with conditional adversarial networks",
        2017,
        "1709.00513",
    )
    hidden: nn.Parameter
    """Weight rows of the hidden layer, each followed by its bias: [classes, classes + 1]."""
    output: nn.Parameter
    """Weight rows of c and, as the last row, of d, each followed by its bias: [classes + 1, classes + 1]."""

    def __init__(self) -> None:
        super().__init__()  # defined because the __init__ of nn.Module accepts any option

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """Build the discriminator for the teacher's classes, with weights from torch's random state."""
        width, device = teacher.logits.shape[1], teacher.logits.device
        self.hidden = nn.Parameter(unit(torch.randn(width, width + 1, device=device)))
        self.output = nn.Parameter(unit(torch.randn(width + 1, width + 1, device=device)))

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the student's loss of a batch; its backward pass also computes the discriminator's gradient."""
        target = teacher.logits.argmax(dim=1)
        theirs = _centered(teacher.logits)
        scale = theirs.square().mean().sqrt().clamp_min(_LEAST_SCALE)
        ours, theirs = _centered(student.logits) / scale, theirs / scale
        layers, frozen = (self.hidden, self.output), (self.hidden.detach(), self.output.detach())
        fooling = _cost(_judged(ours, *frozen), target, teachers=True)
        telling = _cost(_judged(theirs, *layers), target, teachers=True)
        telling = telling + _cost(_judged(ours.detach(), *layers), target, teachers=False)
        if telling.requires_grad:  # replace the incoming gradient, the loss's weight, by 1
            telling.register_hook(torch.ones_like)
        return fooling + (telling - telling.detach())


def _centered(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    return full(logits) - full(logits).mean(dim=1, keepdim=True)


def _judged(
    x: Float[Tensor, "batch classes"],
    hidden: Float[Tensor, "classes inputs"],
    output: Float[Tensor, "inputs inputs"],
) -> Float[Tensor, "batch inputs"]:
    """Return the discriminator's outputs: c and, in the last column, d."""
    return _linear((x + _linear(x, hidden)).relu(), output)


def _linear(x: Float[Tensor, "batch width"], rows: Float[Tensor, "out inputs"]) -> Float[Tensor, "batch out"]:
    """Apply a linear layer with bias whose weight rows are normalized to length 1."""
    return F.linear(F.pad(x, (0, 1), value=1.0), unit(rows))


def _cost(judged: Float[Tensor, "batch outputs"], target: Int[Tensor, " batch"], teachers: bool) -> Float[Tensor, ""]:
    """Return half the sum of the adversarial term and the class term; the target of d is `teachers`."""
    d = judged[:, -1]
    return (F.softplus(-d if teachers else d).mean() + F.cross_entropy(judged[:, :-1], target)) / 2
