"""A generalist, and specialists for groups of its classes: a classifier whose parts vote.

Hinton et al. 2015, Distilling the knowledge in a neural network, arXiv 1503.02531, section 5.
"""

import itertools
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

Groups = Sequence[Sequence[int]]
"""Special classes of each specialist. No class is special to two specialists."""


class Special(nn.Module):
    """The table of the special classes of each specialist, repeated for every image of a batch."""

    classes: Bool[Tensor, "specialists classes"]

    def __init__(self, groups: Groups, classes: int) -> None:
        super().__init__()
        table = torch.zeros(len(groups), classes, dtype=torch.bool)
        for row, group in zip(table, groups, strict=True):
            row[list(group)] = True
        self.register_buffer("classes", table)

    def forward(self, logits: Float[Tensor, "batch classes"]) -> Bool[Tensor, "batch specialists classes"]:
        """Return the table for each row of `logits`."""
        return self.classes.expand(logits.shape[0], -1, -1)


class Experts(nn.Module):
    """The specialists as one module, which returns the logits of each over all classes."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(
        self, images: Float[Tensor, "batch channels height width"], less: Float[Tensor, "specialists classes"]
    ) -> Float[Tensor, "batch specialists classes"]:
        """Compute the specialists' logits minus `less`, the correction of a training."""
        return torch.stack([network(images).float() for network in self.networks], dim=1) - less


class Specialists(nn.Module):
    """A generalist, and a specialist for each of some groups of its classes. The logits are those of their vote.

    A specialist has its special classes and one more, the dustbin, for all other classes. Here the dustbin's logit is
    the log-sum-exp of the other classes' logits. A specialist can therefore start as a copy of the generalist, and any
    network can be a specialist.

    A specialist votes on an image if the generalist's most probable class is special to it (the paper's n is 1). Groups
    have no class in common, so at most one specialist votes. The vote is the distribution q that minimizes KL(p_g, q) +
    KL(p_m, q). For the specialist's dustbin, q is summed over the classes of the dustbin. The paper finds the logits of
    q by gradient descent. For one specialist, q has a closed form: the mean of both distributions, with the dustbin
    spread over its classes in the generalist's proportions. All specialists run on all images, so the network is a
    program without branches.

    Half of the images on which a specialist trains are of its special classes. The paper then adds the logarithm of the
    oversampling proportion to the dustbin's logit. Here training subtracts the logarithm instead. The resulting
    specialist is the same, and can still start as a copy of the generalist. The generalist is not trained, and in
    training no gradient passes through the vote.
    """

    learns_by: ClassVar[tuple[str, ...]] = ("specialists",)
    """Default of `--loss` for this student."""
    shares: Float[Tensor, " specialists"]
    """Share of the images of its special classes among the images that a specialist trains on."""

    def __init__(self, generalist: nn.Module, networks: Sequence[nn.Module], groups: Groups, classes: int) -> None:
        super().__init__()
        self.generalist = generalist.requires_grad_(False)
        self.experts, self.special = Experts(networks), Special(groups, classes)
        self.register_buffer("shares", torch.full((len(groups),), 0.5))

    def train(self, mode: bool = True) -> "Specialists":
        """Set the mode of the specialists. The generalist stays in evaluation mode."""
        super().train(mode)
        self.generalist.eval()
        return self

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits of the vote."""
        frozen = torch.no_grad if self.training else nullcontext
        with frozen():
            general: Tensor = self.generalist(images).float()
        said = self.experts(images, self._less() if self.training else torch.zeros_like(self.special.classes.float()))
        special = self.special(general)
        with frozen():
            return self._vote(general.log_softmax(dim=1), said.log_softmax(dim=2), special)

    def _vote(
        self,
        general: Float[Tensor, "batch classes"],
        said: Float[Tensor, "batch specialists classes"],
        special: Bool[Tensor, "batch specialists classes"],
    ) -> Float[Tensor, "batch classes"]:
        """Return the logarithm of the vote, from log-probabilities."""
        each, least = general[:, None].expand_as(said), torch.finfo(general.dtype).min
        dustbins, theirs = (x.masked_fill(special, least).logsumexp(dim=2, keepdim=True) for x in (said, each))
        spread = torch.where(special, said, each + dustbins - theirs)
        likeliest = general.argmax(dim=1)[:, None, None].expand(-1, special.shape[1], 1)
        votes = special.gather(2, likeliest)
        heard = torch.where(votes, spread, 0.0).sum(dim=1)
        return torch.logaddexp(general, torch.where(votes.any(dim=1), heard, general)) - math.log(2)

    def _less(self) -> Float[Tensor, "specialists classes"]:
        """Return the log-odds of other images against special ones, for the logits of the other classes.

        Training subtracts these values from the logits.
        """
        odds = ((1 - self.shares) / self.shares).log()
        return odds[:, None] * (~self.special.classes).float()


def specialists(network: str, groups: str, num_classes: int = 10) -> Specialists:
    """Build a generalist of the MODEL text `network`, and specialists for `groups=0+3+5 1+7` of its classes.

    The text is enough to build the network.
    Raises: ValueError for a group of fewer than two classes, or of all, and for a class that the network lacks.
    """
    from dfkd.models.find import MODEL  # imported here, because it needs this package's list of networks

    parsed = parse_groups(groups)
    for group in parsed:
        if not 2 <= len(group) < num_classes or max(group) >= num_classes:
            raise ValueError(f"group {spell_groups([group])} is not 2 to {num_classes - 1} of {num_classes} classes")
    generalist, *networks = (MODEL.look_up(network).build() for _ in range(len(parsed) + 1))
    return Specialists(generalist, networks, parsed, num_classes)


def parse_groups(text: str) -> list[list[int]]:
    """Parse the classes of each group. Raises: ValueError for another form."""
    found: list[list[int]] = []
    for item in text.split():
        numbers = item.split("+")
        if not all(number.isdecimal() for number in numbers) or len({*numbers}) < len(numbers):
            raise ValueError(f"groups have {item!r}, not different classes as in 0+3+5")
        if twice := {*map(int, numbers)} & {*itertools.chain(*found)}:
            raise ValueError(f"groups have class {min(twice)} twice; a class is special to one specialist at the most")
        found.append(sorted(map(int, numbers)))
    if not found:
        raise ValueError("groups name no class; write them as in 0+3+5 1+7")
    return found


def spell_groups(groups: Groups) -> str:
    """Format groups as `parse_groups` reads them."""
    return " ".join("+".join(map(str, group)) for group in groups)
