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
    """The distribution of the teacher's logits, by a discriminator that learns to tell the student's from them.

    For logits z the discriminator gives d(z), the log-odds that they are the teacher's, and c(z), logits of the class.
    With y the teacher's most probable class, and averages over the batch of student's logits s and teacher's t,
    - the student minimizes (softplus(-d(s)) + cross-entropy of softmax(c(s)) to y) / 2: this is the loss's value;
    - the discriminator minimizes (softplus(-d(t)) + softplus(d(s)) + the cross-entropies of c(t) and c(s) to y) / 2,
    in the same step, each for the other as it stands. `weight` scales what the student learns from it and not how the
    discriminator learns.

    The paper's formulas were not at hand. By summaries of it the student is a generator conditioned on the image, which
    the name refers to, and the discriminator a perceptron on logits. The rest is that of public code with a
    discriminator of this kind (Compressing deep graph neural networks via adversarial knowledge distillation, 2022,
    https://arxiv.org/abs/2205.11678): it is not told the class but names it, c beside d in one output; one hidden
    layer, as wide as there are classes, with a shortcut and ReLU; the halves and `weight` 1; and for the student -log
    of the probability to fool, whose gradient does not vanish where the discriminator is sure. The class is the image's
    label there; images are unlabelled here, and the teacher's most probable class stands in for it. That code updates
    the two in turns, and adds the L1 distance of the logits, which is `logits:norm=l1` here.

    Ours, since one optimizer trains both, by SGD at rates as high as 0.4:
    - the logits are centered for every image, and divided by the root mean square of the batch's teacher logits (at
      least 0.001): a shift says nothing of an image, and the game is that of any teacher's scale;
    - a row of the two layers' weights, its bias included, counts by its direction alone. Its gradient is then
      orthogonal to it and falls with its length, which every step adds to: no rate makes it diverge, and c and d are
      no larger than what the layer reads.

    It is not 0 at equality: where nobody can tell, d is 0, and the class still pulls the student to be sure of it. The
    discriminator checks the distribution over the batch, not the logits of an image: add it to a loss that teaches
    each image, as in `--loss kd cgan`.
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
