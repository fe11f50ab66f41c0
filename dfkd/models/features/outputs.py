"""What a model says of a batch: the plain value that losses and measures are written for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Bool, Float, Int
from torch import Tensor

from dfkd.models.features.taps import in_group


@dataclass(frozen=True)
class Outputs:
    """Logits in float32, features by tap name, and what a loss may have to know of the batch itself."""

    logits: Float[Tensor, "batch classes"]
    features: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Bool[Tensor, "batch classes"] | None = None
    """Class dropping: False where the teacher's probability is to be ignored; None keeps all."""
    view: Float[Tensor, "batch channels height width"] | None = None
    """The images as both networks saw them; None where the outputs were made by hand."""
    rows: Int[Tensor, " batch"] | None = None
    """Which stored image each one is (the augmentation aside); None where images are not stored."""
    peers: tuple[Float[Tensor, "batch classes"], ...] = ()
    """What the other students of the command (`--also`) say of the same view: logits, without gradients."""

    def group(self, name: str) -> list[Tensor]:
        """The features of a group of taps, from the shallowest to the deepest: `stage` has stage1, stage2, ..."""
        return [self.features[tap] for tap in in_group(self.features, name)]


def half(logits: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Logits to keep, in float16; what is beyond its range gets its largest number."""
    return logits.clamp(-65504, 65504).half()
