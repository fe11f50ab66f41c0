"""Soft decision tree: a classifier whose decisions can be inspected.

Frosst and Hinton 2017, Distilling a neural network into a soft decision tree, arXiv 1711.09784.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

DEEPEST = 14
"""Largest depth of a tree: 16,384 leaves."""


def reached(right: Float[Tensor, "batch nodes"]) -> list[Float[Tensor, "batch _"]]:
    """Return the probability that an image reaches each node, level by level from the root to the leaves.

    `right` holds the probabilities of the right branch, [batch, 2^depth - 1], also level by level. Node i has the left
    child 2i + 1 and the right child 2i + 2.
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
    """Probability of the right branch: the sigmoid of `beta` times a node's activation."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, x: Float[Tensor, "batch nodes"]) -> Float[Tensor, "batch nodes"]:
        """Compute the probabilities in float32, in which 1 - p is exact enough."""
        return torch.sigmoid(self.beta * x.float())


class SoftTree(nn.Module):
    """A binary tree of `depth` levels of nodes, which are linear filters of the pixels, and leaves of learned classes.

    Node i goes right with probability sigmoid(beta (w_i x + b_i)). beta is the paper's inverse temperature. Leaf l has
    the distribution Q_l = softmax(phi_l), which does not depend on the image. In evaluation mode, the logits are log Q
    of the leaf with the largest path probability P_l, as in the paper. With `predict="mixture"`, they are log sum_l P_l
    Q_l. In training mode, the logits are those of the geometric mixture, sum_l P_l log Q_l, from which the loss `tree`
    computes the paper's.
    """

    learns_by: ClassVar[tuple[str, ...]] = ("tree",)
    """Default of `--loss` for this student."""

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
        """Log-probabilities of the classes at each leaf."""
        return self.leaves.float().log_softmax(dim=1)

    def right(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch nodes"]:
        """Compute the probability of the right branch at every node."""
        turns: Tensor = self.turns(self.filters(x.flatten(1)))
        return turns

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        paths, leaves = reached(self.right(x))[-1], self.distributions
        if self.training:
            return (paths[:, :, None] * leaves).sum(dim=1)  # not a matrix product, which autocast would round
        if self.predict == "leaf":
            return leaves[paths.argmax(dim=1)]
        logs = paths.clamp_min(torch.finfo(paths.dtype).tiny).log()
        return (logs[:, :, None] + leaves).logsumexp(dim=1)

    def path(self, turns: Float[Tensor, "nodes"]) -> Int[Tensor, " depth"]:
        """Return the nodes from the root to the leaf of the largest path probability, from one image's `right`."""
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
    """Build a soft decision tree of 2^depth - 1 nodes and 2^depth leaves.

    Raises: ValueError for a depth out of range, and unless beta is above 0.
    """
    if not 1 <= depth <= DEEPEST:
        raise ValueError(f"depth={depth} is not from 1 to {DEEPEST}")
    if not beta > 0:
        raise ValueError(f"beta={beta} is not above 0")
    return SoftTree(depth, beta, predict, image_size, num_classes, in_channels)
