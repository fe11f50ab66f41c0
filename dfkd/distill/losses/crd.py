"""Contrastive representation distillation: which of many images did the other network see?"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dfkd.distill import align
from dfkd.distill.loss import Loss
from dfkd.distill.setting import Setting
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError
from dfkd.system.limits import Range, check_above, check_at_least
from dfkd.system.paper import Paper


class CRD(Loss):
    """The student's last feature identifies the teacher's feature of the same image among many, and vice versa.

        mean over i of -log h(v_i . u_i) - sum over negatives k of log(1 - h(v_i . m_k))
        + the same with the sides exchanged
        v = unit(W x + b)
        h(s) = P / (P + K / M),   P = exp(s / temperature) / Z
        m <- unit(momentum * m + (1 - momentum) * v)

    x are the student's features of the tap `last` [batch, features]; v [batch, width] is their embedding. u is the
    embedding of the teacher's features. m [M, width] is a memory of the teacher's u for each of M images. The exchanged
    term has a memory of the student's v. K is the number of `negatives`. Z is M times the mean of exp(s / temperature)
    over the images drawn for the first batch, and constant from then on. The last line updates the memories of the
    batch's images after a step.

    Both embeddings learn, as in the paper (arXiv 1910.10699). They do not collapse: if all images had one embedding, an
    image could not be distinguished from its negatives, which the loss measures. In each term, only one side gets a
    gradient; the other side's values are constants.

    Differences from the paper:

    - The paper's better negatives are images of other labels. There are no labels here. Negatives are all images but
      the image itself, drawn with replacement.
    - One set of negatives serves the whole batch, as a matrix product. Loss and gradient have the same expectation as
      with a separate draw for each image. The authors' code draws for each image. Its gather is 128 x 16384 x 128
      numbers, 1 GB in a step.
    - `positive=batch` is the paper's formula: the pair is both networks' embeddings of the same view. The authors' code
      takes the partner from the memory (`positive=memory`). At an image's first visit the memory holds a random vector,
      so this suits only runs of many epochs.

    `weight`, `width`, `temperature`, `momentum` and `negatives` are the authors' for CIFAR-100. `negatives` is limited
    to the number of other images. The memories are float32 and part of every checkpoint. A million images take 2 x 128
    x 4 bytes x 10^6 = 1 GB on the device.

    Raises: RequestError for options out of range, and if images are not stored or there is only one.
    """

    family = "relations"
    paper = Paper("Contrastive representation distillation", 2019, "1910.10699")
    taps = ("last",)
    weight = 0.8
    student_memory: Tensor
    teacher_memory: Tensor
    log_z: Tensor

    def __init__(
        self,
        negatives: int = 16_384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        width: int = 128,
        positive: Literal["batch", "memory"] = "batch",
    ) -> None:
        super().__init__()
        check_at_least(1, negatives=negatives, width=width)
        check_above(temperature=temperature)
        Range(least=0, below=1).check(momentum=momentum)
        self.negatives, self.temperature, self.momentum = negatives, temperature, momentum
        self.width, self.positive = width, positive
        self.images, self._z_is_set = 0, False

    def bind(self, setting: Setting) -> None:
        """Keep the number of images. Raises: RequestError if images are not stored, or there are fewer than two."""
        if setting.images is None:
            raise RequestError(
                "it has a memory of every stored image, and a generator makes new ones; leave out --source"
            )
        if setting.images < 2:
            raise RequestError(
                f"it compares images with each other, and there is only {setting.images}; select two or more"
            )
        self.images = setting.images
        self.negatives = min(self.negatives, self.images - 1)

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """Build the embeddings and the memories, which hold random vectors of length about 1."""
        ours, theirs = (align.vectors(outputs) for outputs in (student, teacher))
        self.student_embedding = align.projection(ours, self.width, always=True, bias=True)
        self.teacher_embedding = align.projection(theirs, self.width, always=True, bias=True)
        bound = math.sqrt(3 / self.width)
        for name in ("student_memory", "teacher_memory"):
            memory = torch.empty(self.images, self.width, device=ours.device).uniform_(-bound, bound)
            self.register_buffer(name, memory)
        # one value for the student's and one for the teacher's side; NaN until the first batch
        self.register_buffer("log_z", torch.full((2,), torch.nan, device=ours.device))

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch.

        If gradients are recorded, also update the memories, and set Z from the first batch.
        """
        if teacher.rows is None:
            raise RequestError(
                "it needs the stored image that each view shows; leave out the generator, --mixup and --cutmix"
            )
        v = self._embedded(self.student_embedding, student)
        u = self._embedded(self.teacher_embedding, teacher)
        rows, drawn = teacher.rows.to(v.device), self.draw()
        hits = rows[:, None] == drawn
        total, log_z = v.new_zeros(()), []
        sides = ((v, u, self.teacher_memory), (u, v, self.student_memory))
        for side, (anchors, partners, memory) in enumerate(sides):
            partners = memory[rows] if self.positive == "memory" else partners.detach()
            anchors, negatives = anchors / self.temperature, memory[drawn]
            z = self.log_z[side]
            if not self._z_is_set:  # a resumed run may have set it; a read would synchronize with the device
                z = torch.where(z.isnan(), self._estimated(anchors.detach(), negatives), z)
            total = total + self._contrast(anchors, partners, negatives, hits, z)
            log_z.append(z)
        if torch.is_grad_enabled():
            self._remember(rows, v.detach(), u.detach(), torch.stack(log_z))
        return total

    def draw(self) -> Int[Tensor, " negatives"]:
        """Draw the batch's negatives, uniformly over all images, from torch's global generator."""
        return torch.randint(self.images, (self.negatives,), device=self.log_z.device)

    def _embedded(self, embedding: nn.Module, outputs: Outputs) -> Float[Tensor, "batch width"]:
        align.check_shape("last", outputs.features["last"])
        return align.unit(align.apply(embedding, align.averaged(outputs.features["last"])))

    def _estimated(
        self, anchors: Float[Tensor, "batch width"], negatives: Float[Tensor, "negatives width"]
    ) -> Float[Tensor, ""]:
        """Return log Z: the logarithm of M times the mean of exp(a . m) over the images drawn."""
        scores = anchors @ negatives.T
        return scores.flatten().logsumexp(dim=0) + math.log(self.images / scores.numel())

    def _contrast(
        self,
        anchors: Float[Tensor, "batch width"],
        partners: Float[Tensor, "batch width"],
        negatives: Float[Tensor, "negatives width"],
        hits: Bool[Tensor, "batch negatives"],
        log_z: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        """Compute the loss of one side, averaged over the batch; `anchors` are already divided by the temperature.

        h and 1 - h are logistic functions of log P - log(K / M). Draws that hit the image itself are left out. The
        remaining draws are weighted up, so that the expectation is that of K draws from the other images.
        """
        shift = -log_z - math.log(self.negatives / self.images)
        matches = (anchors * partners).sum(dim=1) + shift
        others = F.linear(anchors, negatives, shift.expand(len(negatives)))
        push = F.softplus(others).masked_fill(hits, 0).sum(dim=1) * (self.images / (self.images - 1))
        return (F.softplus(-matches) + push).mean()

    @torch.no_grad()
    def _remember(
        self,
        rows: Int[Tensor, " batch"],
        v: Float[Tensor, "batch width"],
        u: Float[Tensor, "batch width"],
        log_z: Float[Tensor, " 2"],
    ) -> None:
        """Update the memories of the batch's images, and save Z."""
        # an image that is in the batch twice writes the mean of both twice; otherwise the order of writes would matter
        same = (rows[:, None] == rows).to(v.dtype)
        same = same / same.sum(dim=1, keepdim=True)
        for memory, new in ((self.student_memory, v), (self.teacher_memory, u)):
            moved = self.momentum * memory[rows] + (1 - self.momentum) * (same @ new)
            memory.index_copy_(0, rows, align.unit(moved))
        self.log_z.copy_(log_z)
        self._z_is_set = True
