"""Boundary-supporting samples: images moved just over the teacher's decision boundary in every step."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dfkd.distill.align import full
from dfkd.distill.distributions import kl
from dfkd.distill.loss import Loss
from dfkd.distill.setting import Setting
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError
from dfkd.system.limits import check_above, check_at_least
from dfkd.system.paper import Paper

CROSSING = 1e-4
"""Logit difference added to the gap, so that a step crosses the boundary instead of only approaching it."""


class BSS(Loss):
    """The teacher's softened class probabilities on images that are moved just over its decision boundary.

        KL(softmax(t(x') / T) || softmax(s(x') / T))
        x' <- x' + rate * (t_b - t_k + 0.0001) * g / |g|_2,   g = gradient of t_k - t_b by x'

    s and t give the logits [batch, classes] of student and teacher, and T is the `temperature`. The value is averaged
    over the boundary samples x' [samples, channels, height, width]. Every step makes them from its batch:

    - Base samples are the `samples` images on which student and teacher differ most. The measure is the squared
      difference of their probabilities, summed over all classes but the base class b. A batch that is not larger than
      `samples` is used whole.
    - The target class k is drawn with the teacher's probabilities among the classes other than b.
    - The second line is repeated up to `steps` times, until the teacher no longer predicts b. Pixels stay within the
      range of their channel in the batch.

    The loss (arXiv 1805.05532) is meant as a term beside `kd`. Steps, draws and constants are those of the authors'
    code:

    - t are logits; a well-known public collection uses probabilities.
    - g is divided by its norm, not by the square of its norm.
    - Samples count whether or not they reached k. There is no factor T^2.
    - The authors' base class is the label of samples that the teacher classifies correctly. Images are unlabeled here.
      The teacher's most probable class replaces the label, so all samples qualify.
    - The authors keep pixels within -2.5 and 2.5, which fits one normalization. The range of the batch fits any
      normalization.
    - `weight` is the paper's initial one. The paper lowers it to 0 over three quarters of the training. It is constant
      here.

    x' are constants for the student. The student runs on them in training mode, as in the authors' code. BatchNorm
    normalizes them by their own statistics. BatchNorm's running statistics, which the finished student uses, average
    both kinds of batches equally. A step costs `steps` + 1 more forward passes of the teacher and one of the student,
    on `samples` images.

    Raises: RequestError unless temperature and rate > 0, samples and steps >= 1. Also for outputs without the view.
    """

    family = "boundaries"
    paper = Paper("Knowledge distillation with adversarial samples supporting decision boundary", 2018, "1805.05532")
    asks_teacher = True
    weight = 2.0

    def __init__(self, temperature: float = 3.0, steps: int = 10, rate: float = 0.3, samples: int = 64) -> None:
        super().__init__()
        check_above(temperature=temperature, rate=rate)
        check_at_least(1, steps=steps, samples=samples)
        self.temperature, self.steps, self.rate, self.samples = temperature, steps, rate, samples

    def bind(self, setting: Setting) -> None:
        """Keep the two networks; their weights do not become parameters of this loss."""
        self.setting = setting

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        if teacher.view is None:
            raise RequestError("it makes its samples from the images, which are not available here; leave it out")
        chosen = base_samples(student.logits.detach(), teacher.logits, self.samples)
        told = teacher.logits[chosen]
        base = told.argmax(dim=1)
        target = target_classes(told, base)
        view = cross(self.setting.teacher, teacher.view, chosen, base, target, self.steps, self.rate)
        with torch.no_grad():
            theirs = full(self.setting.teacher(view).logits) / self.temperature
        ours = full(self.setting.student(view).logits) / self.temperature
        return kl(theirs.softmax(dim=1), ours.log_softmax(dim=1))


def base_samples(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"], count: int
) -> Int[Tensor, " chosen"]:
    """Return the `count` rows that differ most in the probabilities outside the teacher's class, or all rows."""
    if len(teacher) <= count:
        return torch.arange(len(teacher), device=teacher.device)
    gap = (full(student).softmax(dim=1) - full(teacher).softmax(dim=1)).square()
    gap = gap.scatter(1, teacher.argmax(dim=1, keepdim=True), 0.0)
    return gap.sum(dim=1).topk(count).indices


def target_classes(teacher: Float[Tensor, "batch classes"], base: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Draw a class other than `base` for every row, with the teacher's probabilities.

    The class with the largest logit + Gumbel noise has this distribution, even if all these probabilities underflow.
    """
    gumbel = -torch.empty_like(teacher).exponential_().log()
    return (teacher + gumbel).scatter(1, base[:, None], -torch.inf).argmax(dim=1)


@torch.enable_grad()
def cross(
    teacher: Callable[[Tensor], Outputs],
    views: Float[Tensor, "batch channels height width"],
    chosen: Int[Tensor, " chosen"],
    base: Int[Tensor, " chosen"],
    target: Int[Tensor, " chosen"],
    steps: int,
    rate: float,
) -> Float[Tensor, "chosen channels height width"]:
    """Move the chosen views towards their target class until the teacher no longer predicts their base class."""
    low, high = views.amin(dim=(0, 2, 3), keepdim=True), views.amax(dim=(0, 2, 3), keepdim=True)
    moved = views[chosen].detach()
    for _ in range(steps):
        moved.requires_grad_(True)
        logits = full(teacher(moved).logits)
        gap = logits.gather(1, base[:, None]) - logits.gather(1, target[:, None])
        (slope,) = torch.autograd.grad(-gap.sum(), moved)
        length = torch.linalg.vector_norm(slope, dim=(1, 2, 3), keepdim=True)
        # no early stop when all images have crossed: the check would synchronize with the device at every step
        stays = logits.argmax(dim=1, keepdim=True) == base[:, None]
        size = torch.where(stays, rate * (gap.detach() + CROSSING), 0.0)
        direction = slope / length.clamp_min(torch.finfo(slope.dtype).tiny)
        moved = (moved.detach() + size[:, :, None, None] * direction).clamp(low, high)
    return moved
