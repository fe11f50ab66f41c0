"""Channel-wise distillation: where in the image each channel is active."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.distill import align
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.limits import check_above
from dfkd.system.paper import Paper


class CWD(Loss):
    """KL divergence between the distributions over the pixels that each channel of teacher and student gives.

    T^2 / C times the sum over the C channels of KL(softmax(y_T / T) || softmax(y_S / T)), the softmax over the pixels
    of one channel, at one stage; averaged over the batch. T = 4 is the paper's. Where the widths differ, a learned 1x1
    convolution on the student's side, as in the paper; where resolutions differ, both are average-pooled to the smaller
    one.

    The paper is on segmentation; `weight` 50 is its weight for feature maps there (3 for maps of logits). `stage` is
    the last by default. A softmax does not see a constant that is added to a channel.

    Raises: RequestError unless temperature > 0, for a stage that there is not, or one that is no map.
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
        """The loss of a batch."""
        ours, theirs = align.same_size(*align.one_stage(self.stage, student, teacher))
        log_q, log_p = (
            (channels.flatten(2) / self.temperature).log_softmax(dim=2)
            for channels in (align.apply(self.projection, ours), align.full(theirs))
        )
        divergence = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
        return divergence / log_q.shape[:2].numel() * self.temperature**2
