"""Boundary-supporting samples: images pushed over the teacher's decision boundary, made as the student learns."""

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
"""Added to the gap between the two logits, so that a step can cross the boundary and not only come near it."""


class BSS(Loss):
    """The teacher's softened distribution on images that are pushed just over its decision boundary.

        KL(softmax(t(x') / T) || softmax(s(x') / T))
        x' <- x' + rate * (t_b - t_k + 0.0001) * g / |g|_2,   g = gradient of t_k - t_b by x'

    s and t give the logits [batch, classes] of student and teacher, and T is the `temperature`. The value is averaged
    over the boundary samples x' [samples, channels, height, width]. They are made from the batch at every step:

    - Base samples are the `samples` images on which student and teacher differ most. The measure is the squared
      difference of their probabilities, summed over all classes but the base class b. A batch that is not larger is
      used whole.
    - The target class k is drawn with the teacher's probability among the classes other than b.
    - The second line is repeated up to `steps` times, until the teacher no longer predicts b. Pixels stay within the
      range of their channel in the batch.

    The loss is a term beside kd. Steps, draws and constants are those of the authors' code:

    - t are logits, where a well-known collection has probabilities.
    - g is divided by its norm, not by the norm's square.
    - Samples count whether or not they reached k. There is no factor T^2.
    - Their base class is the label of samples that the teacher classifies correctly. Images are unlabeled here. The
      teacher's most probable class stands in for the label, so that all samples qualify.
    - They keep pixels within -2.5 and 2.5, which fits one normalization. Ours fits any.
    - `weight` is the paper's initial one. It falls to 0 over three quarters of the training there, and is constant
      here.

    x' are constants for the student. The student runs on them in training mode, as in the authors' code. They are
    normalized by their own statistics. BatchNorm's running statistics, which the finished student uses, take in both
    kinds of batches equally. A step costs `steps` + 1 more passes of the teacher and one of the student, on `samples`
    images.

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
        """Take the two networks; their weights do not become this loss's own."""
        self.setting = setting

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """The loss of a batch."""
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
    """The rows whose probabilities differ most outside the teacher's class; all of them where there are not more."""
    if len(teacher) <= count:
        return torch.arange(len(teacher), device=teacher.device)
    gap = (full(student).softmax(dim=1) - full(teacher).softmax(dim=1)).square()
    gap = gap.scatter(1, teacher.argmax(dim=1, keepdim=True), 0.0)
    return gap.sum(dim=1).topk(count).indices


def target_classes(teacher: Float[Tensor, "batch classes"], base: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """A class other than `base` for every row, drawn with the teacher's probabilities.

    By the largest of logit + Gumbel noise: the same draw, also where all those probabilities underflow.
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
    """The chosen views moved from their base class towards the target class until the teacher leaves the base class."""
    low, high = views.amin(dim=(0, 2, 3), keepdim=True), views.amax(dim=(0, 2, 3), keepdim=True)
    moved = views[chosen].detach()
    for _ in range(steps):
        moved.requires_grad_(True)
        logits = full(teacher(moved).logits)
        gap = logits.gather(1, base[:, None]) - logits.gather(1, target[:, None])
        (slope,) = torch.autograd.grad(-gap.sum(), moved)
        length = torch.linalg.vector_norm(slope, dim=(1, 2, 3), keepdim=True)
        # no early end when all have crossed: checking would wait for the device at every step
        stays = logits.argmax(dim=1, keepdim=True) == base[:, None]
        size = torch.where(stays, rate * (gap.detach() + CROSSING), 0.0)
        direction = slope / length.clamp_min(torch.finfo(slope.dtype).tiny)
        moved = (moved.detach() + size[:, :, None, None] * direction).clamp(low, high)
    return moved
