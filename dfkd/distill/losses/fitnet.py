"""FitNet: the student's middle map matches the teacher's, through a regressor that trains with it."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.distill import align
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.paper import Paper


class FitNet(Loss):
    """Half the squared difference between the teacher's map at one stage and the student's, seen through a regressor.

    1/2 ||u_h - r(v_g)||^2 with the teacher's hint u_h, the student's guided map v_g and the regressor r. It is the mean
    over the batch and over all elements of the map (the paper writes the sum, whose size depends on the resolution);
    well-known public code leaves out the half and weighs 100, which is fitnet:200 here.

    The paper's regressor is a convolution without padding whose kernel is as large as it takes to bring the student's
    map to the teacher's resolution, followed by the activation of the teacher's layer. Here both maps are
    average-pooled to the smaller resolution, at which that kernel is 1x1; where the widths agree too there is none, as
    in the authors' code. A map does not tell which activation made it: with `activation=none` the regressor is linear,
    `activation=relu` is the paper's for teachers with ReLU. `stage` says which stage is the hint; the paper's is the
    middle one. `weight` is 1: the paper trains this loss alone, up to the guided layer, and then the whole student with
    KD. That is one run with `--loss fitnet`, and a second that starts from it with `--student THAT_RUN`.

    Raises: RequestError for a stage that there is not, or one that is no map [batch, channels, height, width].
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
        """The loss of a batch."""
        ours, theirs = align.same_size(*align.one_stage(self.stage, student, teacher))
        ours = align.apply(self.regressor, ours)
        return F.mse_loss(ours.relu() if self.activation == "relu" else ours, align.full(theirs)) / 2
