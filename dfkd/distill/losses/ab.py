"""Activation boundaries: which of the teacher's neurons are active."""

from jaxtyping import Float
from torch import Tensor, nn

from dfkd.distill import align
from dfkd.distill.loss import Loss
from dfkd.models.features.outputs import Outputs
from dfkd.system.limits import check_above
from dfkd.system.paper import Paper


class AB(Loss):
    """Activation boundaries: every pre-activation of the student has the sign of the teacher's.

        (margin - s)^2   where t > 0 and s < margin
        (margin + s)^2   where t <= 0 and s > -margin
        0                elsewhere

    s and t are the pre-activations [batch, channels, height, width] of student and teacher; s is the output of a
    connector. The value is summed over channels and pixels, averaged over the batch and summed over the stages. Each
    stage has half the weight of the next deeper one, whose maps are about half as large. The loss is 0 if the student
    is beyond the `margin` on the teacher's side everywhere.

    The halving and `weight` are those of the authors' code for CIFAR (arXiv 1811.03233). Other code averages over the
    elements. If widths differ, the connector is a 1x1 convolution and a batch normalization on the student's side.
    Ours: maps of different resolution are average-pooled to the smaller one.

    The paper initializes the student by this loss alone and then trains it by KD. That is `--loss ab`, then `--student
    THAT_RUN --loss kd`. Alone, the loss gives the student's last layer no gradient.

    Raises: RequestError unless margin > 0, or for features that are not maps.
    """

    family = "features"
    per_image = True
    paper = Paper(
        "Knowledge transfer via distillation of activation boundaries formed by hidden neurons", 2018, "1811.03233"
    )
    taps = ("pre",)
    weight = 0.003

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        check_above(margin=margin)
        self.margin = margin
        self.connectors = nn.ModuleList()

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """Build a connector for every stage whose widths differ, with weights from torch's random state."""
        for ours, theirs in align.map_pairs("pre", student, teacher):
            width = theirs.shape[1]
            self.connectors.append(nn.Identity() if ours.shape[1] == width else align.connector(ours, width))

    def forward(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """Compute the loss of a batch."""
        total = student.logits.new_zeros(())
        pairs = align.map_pairs("pre", student, teacher)
        for connector, (ours, theirs) in zip(self.connectors, pairs, strict=True):
            ours, theirs = align.same_size(ours, theirs)
            s = align.apply(connector, ours)
            side = (align.full(theirs).sign() - 0.5).sign()  # 1 where t > 0, else -1; a mask is far slower on a CPU
            short = (self.margin - side * s).relu()
            total = total / 2 + short.square().sum() / len(s)
        return total
