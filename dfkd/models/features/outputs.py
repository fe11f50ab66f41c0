"""What a model says of a batch: the plain value that losses and measures are written for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Bool, Float, Int
from torch import Tensor

from dfkd.models.features.taps import in_group


@dataclass(frozen=True)
class Outputs:
    """What a network says of a batch: logits, features by tap, and what a loss may read of the batch itself."""

    logits: Float[Tensor, "batch classes"]
    """In float32, before the softmax."""
    features: Mapping[str, Tensor] = field(default_factory=dict)
    """By tap: maps [batch, channels, height, width], or vectors [batch, width] of the tap `last`."""
    kept: Bool[Tensor, "batch classes"] | None = None
    """Class dropping: False where the teacher's probability is ignored. None keeps all classes."""
    view: Float[Tensor, "batch channels height width"] | None = None
    """The images as both networks saw them, normalized. None if the outputs were made by hand."""
    rows: Int[Tensor, " batch"] | None = None
    """The stored image that each one is a view of. None if images are not stored."""
    peers: tuple[Float[Tensor, "batch classes"], ...] = ()
    """The logits of the other students of the command (`--also`) for the same view, without gradients."""

    def group(self, name: str) -> list[Tensor]:
        """List the features of a group of taps, from the shallowest to the deepest.

        Args:
            name: `stage`, `pre` or `begin`. `stage` has `stage1`, `stage2`, ...

        Returns:
            Maps [batch, channels, height, width], one per resolution.
        """
        return [self.features[tap] for tap in in_group(self.features, name)]


def half(logits: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Logits to keep, in float16; what is beyond its range gets its largest number."""
    return logits.clamp(-65504, 65504).half()
