"""Channel-wise distillation: the spatial distribution of each channel's activation."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.distill import align
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.limits import check_above
from dfkd.system.paper import Paper


class CWD(Loss):
    """The distribution over the pixels that each channel of the teacher gives.

        T^2 / C * sum over C channels of KL(softmax(y_t / T) || softmax(y_s / T))

    y_t and y_s are the maps [batch, C, height, width] of teacher and student at one stage. The softmax is over the
    pixels of one channel. T is the `temperature`; 4 is the value of the paper (arXiv 2011.13256). The value is averaged
    over the batch. If the widths differ, a learned 1x1 convolution follows the student's map, as in the paper. Maps of
    different resolution are average-pooled to the smaller one.

    The paper is about segmentation. `weight` 50 is its weight for feature maps (3 for maps of logits). `stage` is the
    last one by default. A constant added to a channel does not change the softmax.

    Raises: RequestError unless temperature > 0. Also for a stage that does not exist, or that is not a map.
    """

    family = "features"
    per_image = True
    paper = Paper("Channel-wise knowledge distillation for dense prediction", 2020, "2011.13256")
    taps = ("stage",)
    weight = 50.0

    def __init__(self, temperature: float = 4.0, stage: align.Stage = "last") -> None:
        super().__init__()
        check_above(temperature=temperature)
        self.temperature, self.stage = temperature, stage
        self.projection: nn.Module = nn.Identity()

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """Build the projection from a batch of maps."""
        ours, theirs = align.one_stage(self.stage, student, teacher)
        self.projection = align.projection(ours, theirs.shape[1])

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        ours, theirs = align.same_size(*align.one_stage(self.stage, student, teacher))
        log_q, log_p = (
            (channels.flatten(2) / self.temperature).log_softmax(dim=2)
            for channels in (align.apply(self.projection, ours), align.full(theirs))
        )
        divergence = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
        return divergence / log_q.shape[:2].numel() * self.temperature**2
