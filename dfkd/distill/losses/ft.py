"""Factor transfer: compressed last maps, by a paraphraser for the teacher and a translator for the student."""

import itertools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.distill import align
from dfkd.distill.loss import PreparedLoss
from dfkd.models.features.outputs import Outputs
from dfkd.system.limits import check_above, check_at_least
from dfkd.system.paper import Paper

_LEAK = 0.1


class FT(PreparedLoss):
    """The factors that convolutions extract from the last map of teacher and student.

        mean over elements and batch of |F_t / ||F_t||_2 - F_s / ||F_s||_2|

    F_t is the code of the paraphraser, a convolutional autoencoder on the teacher's map [batch, channels, height,
    width]. The code has `rate` times as many channels as the map. F_s is the output of the translator on the student's
    map. Encoder and translator each have three 3x3 convolutions, each followed by a leaky ReLU of slope 0.1. Each
    factor is flattened per image. Maps of different resolution are first average-pooled to the smaller one. `stage`
    selects the stage.

    This is the form of the paper (arXiv 1802.04977) with p = 1. The paper writes the norm, a sum. The mean and `weight`
    500 are those of the authors' code, and belong together. Other public code first squares the factors and averages
    them over channels.

    The paper trains the paraphraser beforehand, alone and unsupervised. Here the first `paraphraser` steps do that:

    - In these steps the loss is the mean absolute difference between the teacher's map and its reconstruction, as in
      the authors' code. It is divided by 500, so that with the default `weight` it counts once. The student learns from
      other losses only.
    - After these steps the paraphraser is fixed, and translator and student learn. A run must therefore be longer.

    Raises: RequestError unless rate > 0 and paraphraser >= 1. Also for a stage that does not exist, or is not a map.
    """

    family = "features"
    per_image = True
    paper = Paper("Paraphrasing complex network: Network compression via factor transfer", 2018, "1802.04977")
    taps = ("stage",)
    weight = 500.0

    def __init__(self, rate: float = 0.5, paraphraser: int = 500, stage: align.Stage = "last") -> None:
        super().__init__()
        check_above(rate=rate)
        check_at_least(1, paraphraser=paraphraser)
        self.rate, self.preparation, self.stage = rate, paraphraser, stage
        self.encoder, self.decoder, self.translator = nn.Sequential(), nn.Sequential(), nn.Sequential()

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """Build paraphraser and translator from a batch of maps."""
        ours, theirs = align.one_stage(self.stage, student, teacher)
        width = theirs.shape[1]
        factors = max(1, round(self.rate * width))
        self.encoder = _convolutions(width, width, factors, factors).to(theirs.device)
        self.decoder = _convolutions(factors, factors, width, width, transposed=True).to(theirs.device)
        self.translator = _convolutions(ours.shape[1], ours.shape[1], factors, factors).to(ours.device)

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch, and count a step if gradients are recorded."""
        ours, theirs = align.same_size(*align.one_stage(self.stage, student, teacher))
        if self.steps < self.preparation:
            self.steps += torch.is_grad_enabled()
            with align.precision_of(theirs):
                reconstruction = self.decoder(self.encoder(theirs))
            return F.l1_loss(align.full(reconstruction), align.full(theirs)) / self.weight
        with torch.no_grad():  # not a gradient of 0: weight decay and momentum would still act
            target = align.apply(self.encoder, theirs)
        factor = align.apply(self.translator, ours)
        return F.l1_loss(align.unit(factor.flatten(1)), align.unit(target.flatten(1)))


def _convolutions(*widths: int, transposed: bool = False) -> nn.Sequential:
    """Build 3x3 convolutions from each width to the next, at constant resolution, each followed by a leaky ReLU."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layers = [(kind(a, b, 3, padding=1), nn.LeakyReLU(_LEAK)) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*(part for layer in layers for part in layer))
