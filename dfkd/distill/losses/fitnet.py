"""FitNet: the student's map of one stage regresses the teacher's, through a learned regressor."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.distill import align
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.paper import Paper


class FitNet(Loss):
    """Half the squared difference between the teacher's map at one stage and a regression from the student's.

        1/2 ||u_h - r(v_g)||^2

    u_h is the teacher's hint, v_g the student's guided map and r the regressor. Maps are [batch, channels, height,
    width]. The value is the mean over the batch and all elements. The paper (arXiv 1412.6550) writes the sum, whose
    size depends on the resolution. Well-known public code omits the factor 1/2 and has weight 100, which is
    `fitnet:200` here.

    The paper's regressor is a convolution without padding. Its kernel is large enough to bring the student's map to the
    teacher's resolution. The activation of the teacher's layer follows. Here both maps are average-pooled to the
    smaller resolution, at which that kernel is 1x1. If the widths are also equal, there is no regressor, as in the
    authors' code.

    A map does not show which activation produced it. With `activation=none` the regressor is linear. `activation=relu`
    is the paper's choice for teachers with ReLU. `stage` selects the stage of the hint; the paper uses the middle one.

    `weight` is 1. The paper trains this loss alone, up to the guided layer, and then the whole student with `kd`. That
    is one run with `--loss fitnet`, and a second one with `--student THAT_RUN`.

    Raises: RequestError for a stage that does not exist, or that is not a map [batch, channels, height, width].
    """

    family = "features"
    per_image = True
    paper = Paper("FitNets: Hints for thin deep nets", 2014, "1412.6550")
    taps = ("stage",)

    def __init__(self, stage: align.Stage = "middle", activation: Literal["none", "relu"] = "none") -> None:
        super().__init__()
        self.stage, self.activation = stage, activation
        self.regressor: nn.Module = nn.Identity()

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """Build the regressor from a batch of maps."""
        ours, theirs = align.one_stage(self.stage, student, teacher)
        self.regressor = align.projection(ours, theirs.shape[1], bias=True)

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        ours, theirs = align.same_size(*align.one_stage(self.stage, student, teacher))
        ours = align.apply(self.regressor, ours)
        return F.mse_loss(ours.relu() if self.activation == "relu" else ours, align.full(theirs)) / 2
