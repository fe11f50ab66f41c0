"""What a model says of a batch: the plain value that losses and measures are written for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """Logits in float32, features by tap name, and for a teacher the classes that count in each sample."""

    logits: Float[Tensor, "batch classes"]
    features: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Bool[Tensor, "batch classes"] | None = None
    """Class dropping: False where the teacher's probability is to be ignored; None keeps all."""
