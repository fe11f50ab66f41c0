"""The soft decision tree (Frosst and Hinton 2017, Distilling a neural network into a soft decision tree,
arXiv 1711.09784): a classifier whose every decision can be looked at.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

DEEPEST = 14
"""A tree of this depth has 16,384 leaves."""


def reached(right: Float[Tensor, "batch nodes"]) -> list[Float[Tensor, "batch _"]]:
    """The probability with which an image reaches each node, level by level from the root; the leaves are the last.

    `right` are the probabilities of the right branch, [batch, 2^depth - 1], also level by level: node i has the
    children 2i + 1, on the left, and 2i + 2.
    """
    levels = [torch.ones_like(right[:, :1])]
    first = 0
    while first < right.shape[1]:
        here = levels[-1]
        turn = right[:, first : first + here.shape[1]]
        levels.append(torch.stack([here * (1 - turn), here * turn], dim=2).flatten(1))
        first += here.shape[1]
    return levels


class Turns(nn.Module):
    """The probability of the right branch from the activations of the nodes."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, x: Float[Tensor, "batch nodes"]) -> Float[Tensor, "batch nodes"]:
        """In float32, where 1 - p is exact enough."""
        return torch.sigmoid(self.beta * x.float())


class SoftTree(nn.Module):
    """A binary tree of `depth` levels of nodes, each a linear filter of the pixels, and leaves of learned classes.

    Node i goes right with probability sigmoid(beta (w_i x + b_i)); beta is the paper's inverse temperature. Leaf l has
    the distribution Q_l = softmax(phi_l), whatever the image. In evaluation mode the logits are log Q of the leaf with
    the greatest path probability P_l, as in the paper, or of the mixture, log sum_l P_l Q_l. In training mode they are
    sum_l P_l log Q_l, from which the loss `tree` makes the paper's; as logits they are the geometric mixture's.
    """

    learns_by: ClassVar[tuple[str, ...]] = ("tree",)
    """The default of `--loss` for such a student."""

    def __init__(
        self,
        depth: int,
        beta: float,
        predict: Literal["leaf", "mixture"],
        image_size: int,
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.depth, self.predict, self.image_size, self.in_channels = depth, predict, image_size, in_channels
        self.filters = nn.Linear(in_channels * image_size**2, 2**depth - 1)
        self.turns = Turns(beta)
        self.leaves = nn.Parameter(0.1 * torch.randn(2**depth, num_classes))

    @property
    def distributions(self) -> Float[Tensor, "leaves classes"]:
        """The leaves' distributions, in logarithms."""
        return self.leaves.float().log_softmax(dim=1)

    def right(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch nodes"]:
        """The probability of the right branch at every node."""
        turns: Tensor = self.turns(self.filters(x.flatten(1)))
        return turns

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """The logits."""
        paths, leaves = reached(self.right(x))[-1], self.distributions
        if self.training:
            return (paths[:, :, None] * leaves).sum(dim=1)  # no product of matrices: autocast would round it
        if self.predict == "leaf":
            return leaves[paths.argmax(dim=1)]
        logs = paths.clamp_min(torch.finfo(paths.dtype).tiny).log()
        return (logs[:, :, None] + leaves).logsumexp(dim=1)

    def path(self, turns: Float[Tensor, "nodes"]) -> Int[Tensor, " depth"]:
        """The nodes from the root to the leaf of the greatest path probability, from one image's `right`."""
        leaf = int(reached(turns[None])[-1].argmax())
        nodes, node = [], len(turns) + leaf
        while node:
            node = (node - 1) // 2
            nodes.append(node)
        return torch.tensor(nodes[::-1])


def soft_tree(
    depth: int = 8,
    beta: float = 1.0,
    predict: Literal["leaf", "mixture"] = "leaf",
    image_size: int = 32,
    num_classes: int = 10,
    in_channels: int = 3,
) -> SoftTree:
    """A soft decision tree of 2^depth - 1 nodes and 2^depth leaves.

    Raises: ValueError for a depth out of range, and unless beta is above 0.
    """
    if not 1 <= depth <= DEEPEST:
        raise ValueError(f"depth={depth} is not from 1 to {DEEPEST}")
    if not beta > 0:
        raise ValueError(f"beta={beta} is not above 0")
    return SoftTree(depth, beta, predict, image_size, num_classes, in_channels)
