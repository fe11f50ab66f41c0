"""Functions that make features of two networks comparable in precision, resolution and width, for losses."""

from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.models.features.outputs import Outputs
from dfkd.system import ranks
from dfkd.system.errors import RequestError
from dfkd.system.shares import pooled

Stage = int | str
"""A stage that a loss reads: a number from 1, the shallowest, or `middle`, or `last`."""


def full(x: Tensor) -> Tensor:
    """Convert a tensor of lower precision to float32, for differences, norms and logarithms.

    Args:
        x: A tensor of any shape.

    Returns:
        `x` itself, unless it is bfloat16 or float16.
    """
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def check_shape(tap: str, *features: Tensor, dimensions: tuple[int, ...] = (2, 4)) -> None:
    """Raise RequestError for a feature whose number of dimensions is not among `dimensions`.

    A vector [batch, width] has 2 dimensions, a map [batch, channels, height, width] has 4.
    """
    words = {2: "[batch, width]", 4: "[batch, channels, height, width]"}
    for feature in features:
        if feature.ndim not in dimensions:
            wanted = " or ".join(words[d] for d in dimensions)
            raise RequestError(
                f"the feature {tap!r} has shape {list(feature.shape)}, it has to be {wanted}; "
                "name another tap in student_taps or teacher_taps"
            )


def check_head(option: str, feature: Float[Tensor, "batch width"], head: nn.Linear, who: str) -> None:
    """Raise RequestError if a network's last linear layer does not take its feature `last`.

    `option` is what needs the two, and `who` is `student` or `teacher`.
    """
    if feature.shape[1] != head.in_features:
        raise RequestError(
            f"{option}: the {who}'s feature 'last' has {feature.shape[1]} values, its last layer takes "
            f"{head.in_features}; leave last out of {who}_taps"
        )


def same_size(
    ours: Float[Tensor, "batch ours_channels _ _"], theirs: Float[Tensor, "batch theirs_channels _ _"]
) -> tuple[Float[Tensor, "batch ours_channels h w"], Float[Tensor, "batch theirs_channels h w"]]:
    """Average-pool two maps to the smaller resolution of the two.

    Args:
        ours: The student's map [batch, channels, height, width].
        theirs: The teacher's map. Its channels may differ.

    Returns:
        Both maps in one resolution. A map that already has this resolution is returned unchanged.
    """
    size = (min(ours.shape[2], theirs.shape[2]), min(ours.shape[3], theirs.shape[3]))
    return tuple(x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size) for x in (ours, theirs))  # type: ignore[return-value]


def averaged(feature: Tensor) -> Float[Tensor, "batch width"]:
    """Average a map over its pixels. A vector is returned unchanged.

    Args:
        feature: [batch, channels, height, width] or [batch, width].

    Returns:
        [batch, channels] or [batch, width].
    """
    return feature.mean(dim=(2, 3)) if feature.ndim == 4 else feature


def projection(ours: Tensor, width: int, *, always: bool = False, bias: bool = False) -> nn.Module:
    """Build a layer that changes the width of a feature: a 1x1 convolution for maps, a linear layer for vectors.

    Args:
        ours: A feature of the student, [batch, channels, height, width] or [batch, width].
        width: Channels of the result.
        always: Whether to build the layer even if the width is already right. Otherwise return the identity.
        bias: Whether the layer has a bias.

    Returns:
        The layer, on the device of `ours`. Its weights are drawn from torch's random state.

    Example:
        >>> projection(torch.zeros(2, 16, 8, 8), 32)
        Conv2d(16, 32, kernel_size=(1, 1), stride=(1, 1), bias=False)
    """
    if ours.shape[1] == width and not always:
        return nn.Identity()
    layer = nn.Conv2d(ours.shape[1], width, 1, bias=bias) if ours.ndim == 4 else nn.Linear(ours.shape[1], width, bias)
    return layer.to(ours.device)


def apply(layer: nn.Module, feature: Tensor) -> Tensor:
    """Apply a layer of a loss to a feature in the feature's precision, and return float32.

    A projection then costs as much as a layer of the student. Differences of its output are computed in float32.

    Args:
        layer: A layer that trains with the student.
        feature: A feature of the student.

    Returns:
        The layer's output in float32.
    """
    with precision_of(feature):
        return full(layer(feature))


def precision_of(feature: Tensor) -> AbstractContextManager[object]:
    """Return an autocast context in which a loss's own layers compute in the precision of `feature`."""
    low = feature.dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(feature.device.type, feature.dtype if low else torch.bfloat16, enabled=low)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalization in a loss's own layers: always by the batch, without running statistics.

    These layers are used in training only. The batch is the whole one, even if several processes share it.

    Raises: RequestError for one value per channel (a batch of one, maps of one pixel), which has no variance.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` [batch, width, height, width] per channel."""
        if x.numel() == x.shape[1]:
            raise RequestError(
                "a loss normalizes its features by the batch, and a batch of one image with maps of one pixel has no "
                "variance; give a --batch-size of 2 or more"
            )
        if ranks.count() == 1:
            return super().forward(x)
        variance, mean = torch.var_mean(full(x), dim=(0, 2, 3), correction=0)
        mean, variance = (v[:, None, None] for v in pooled(mean, variance, x.numel() / x.shape[1]))
        normalized = (full(x) - mean) * (variance + self.eps).rsqrt()
        return (normalized * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def connector(ours: Float[Tensor, "batch channels _ _"], width: int) -> nn.Sequential:
    """Build a 1x1 convolution to `width` channels with batch normalization, on the device of `ours`."""
    return nn.Sequential(nn.Conv2d(ours.shape[1], width, 1, bias=False), BatchNorm(width)).to(ours.device)


def map_pairs(group: str, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
    """Return the maps of a group of taps as pairs of student and teacher, from the shallowest to the deepest.

    Raises: RequestError if a feature is not a map.
    """
    pairs = list(zip(student.group(group), teacher.group(group), strict=True))
    for pair in pairs:
        check_shape(group, *pair, dimensions=(4,))
    return pairs


def one_stage(stage: Stage, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
    """Return the student's and the teacher's map of one stage.

    With an even number of stages, `middle` is the first of the two in the middle.

    Raises: RequestError if the stage does not exist, or its feature is not a map.
    """
    pairs = map_pairs("stage", student, teacher)
    count = len(pairs)
    number = {"middle": (count + 1) // 2, "last": count}.get(stage, 0) if isinstance(stage, str) else stage
    if not 1 <= number <= count:
        raise RequestError(
            f"stage={stage} is not one of the {count} stages that student and teacher share; "
            f"write a number from 1 to {count}, middle or last"
        )
    return pairs[number - 1]


def vectors(outputs: Outputs, tap: str = "last") -> Float[Tensor, "batch width"]:
    """Return a feature as one float32 vector per sample; maps are averaged over their pixels."""
    check_shape(tap, outputs.features[tap])
    return averaged(full(outputs.features[tap]))


def last_pair(student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
    """Return the two features `last` as vectors [batch, width], each in its precision; maps are averaged."""
    pair = student.features["last"], teacher.features["last"]
    check_shape("last", *pair)
    return averaged(pair[0]), averaged(pair[1])


def unit(rows: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
    """Divide each row by its L2 norm; a row of zeros stays zero, and its gradient stays finite."""
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / length.masked_fill(length == 0, 1)
