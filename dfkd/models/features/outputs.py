"""A network's outputs for a batch: the plain value that losses and measures take."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Bool, Float, Int
from torch import Tensor

from dfkd.models.features.taps import in_group


@dataclass(frozen=True)
class Outputs:
    """A network's outputs for a batch: logits, features by tap, and properties of the batch that a loss may read."""

    logits: Float[Tensor, "batch classes"]
    """Logits in float32, before the softmax."""
    features: Mapping[str, Tensor] = field(default_factory=dict)
    """Features by tap: maps [batch, channels, height, width], or vectors [batch, width] of the tap `last`."""
    kept: Bool[Tensor, "batch classes"] | None = None
    """Mask of class dropping: False where the teacher's probability is ignored. None keeps all classes."""
    view: Float[Tensor, "batch channels height width"] | None = None
    """The images as both networks saw them, normalized. None if the outputs were made by hand."""
    rows: Int[Tensor, " batch"] | None = None
    """Row of the stored image of which each image is a view. None if images are not stored."""
    peers: tuple[Float[Tensor, "batch classes"], ...] = ()
    """Logits of the other students of the command (`--also`) for the same view, without gradients."""

    def group(self, name: str) -> list[Tensor]:
        """List the features of a group of taps, from the shallowest to the deepest.

        Args:
            name: `stage`, `pre` or `begin`. `stage` has `stage1`, `stage2`, ...

        Returns:
            Maps [batch, channels, height, width], one per resolution.
        """
        return [self.features[tap] for tap in in_group(self.features, name)]


HALF_LIMIT = 65504.0
"""Largest number of float16."""


def half(logits: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Convert logits to float16, for storage. Values beyond the range of float16 are clamped."""
    return logits.clamp(-HALF_LIMIT, HALF_LIMIT).half()
