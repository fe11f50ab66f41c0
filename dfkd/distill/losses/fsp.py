"""Flow of solution procedure: inner products between a stage's first and last map."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.distill import align
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError
from dfkd.system.paper import Paper


class FSP(Loss):
    """The FSP matrices: products of a stage's first and last map, averaged over the pixels.

        sum over stages of ||G_t - G_s||^2,   G = F1 F2^T / (h w)

    F1 and F2 are the first and the last map of a stage as [channels, pixels]. G is [channels of F1, channels of F2],
    for each image and stage. ||.||^2 is the sum of the squared entries. The value is averaged over the batch.

    Well-known public code uses other matrices: those of the last maps of consecutive stages, pooled to the smaller one.
    It takes the mean over entries instead of the sum.

    In the paper (Yim et al., CVPR 2017) both networks have the same channels. If channels differ here, learned 1x1
    convolutions project the student's maps. Resolutions may differ between the networks, because G does not depend on
    them. If the two maps of one stage differ in resolution, the larger one is max-pooled, as in the paper.

    The paper trains this loss alone, and then the task alone. That is a run with `--loss fsp`, and another with
    `--student THAT_RUN`. The paper gives all stages one weight but does not state it. `weight` is ours, for learning
    rates of 0.4, where the paper has 0.001. The sum over entries grows with the product of the widths. Narrow networks
    tolerate 0.0001.

    Raises: RequestError for a feature that is not a map, or for unequal numbers of first and last maps.
    """

    family = "features"
    per_image = True
    paper = Paper(
        "A gift from knowledge distillation: Fast optimization, network minimization and transfer learning",
        2017,
        "https://openaccess.thecvf.com/content_cvpr_2017/papers/Yim_A_Gift_From_CVPR_2017_paper.pdf",
    )
    taps = ("begin", "stage")
    weight = 0.00001

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.ModuleList(), nn.ModuleList()

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """Build two projections for each stage from a batch of maps."""
        for ends in _stages(student, teacher):
            for layers, (ours, theirs) in zip((self.first, self.last), ends, strict=True):
                layers.append(align.projection(ours, theirs.shape[1]))

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        total = student.logits.new_zeros(())
        for (first, last), (begin, end) in zip(
            zip(self.first, self.last, strict=True), _stages(student, teacher), strict=True
        ):
            ours = _matrix(align.apply(first, begin[0]), align.apply(last, end[0]))
            theirs = _matrix(align.full(begin[1]), align.full(end[1]))
            total = total + (theirs - ours).square().sum(dim=(1, 2)).mean()
        return total


def _stages(student: Outputs, teacher: Outputs) -> list[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    """Return, for each stage, its first and its last map, each as a pair of student and teacher."""
    first, last = (align.map_pairs(group, student, teacher) for group in ("begin", "stage"))
    if len(first) != len(last):
        raise RequestError(
            f"there are {len(first)} maps that begin a stage and {len(last)} that end one; "
            "name as many of begin1, begin2, ... as of stage1, stage2, ... in student_taps and teacher_taps"
        )
    return list(zip(first, last, strict=True))


def _matrix(first: Float[Tensor, "batch m _ _"], last: Float[Tensor, "batch n _ _"]) -> Float[Tensor, "batch m n"]:
    size = (min(first.shape[2], last.shape[2]), min(first.shape[3], last.shape[3]))
    f1, f2 = (x if x.shape[2:] == size else F.adaptive_max_pool2d(x, size) for x in (first, last))
    return f1.flatten(2) @ f2.flatten(2).transpose(1, 2) / (size[0] * size[1])
