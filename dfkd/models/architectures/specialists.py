"""A generalist and specialists for groups of its classes (Hinton et al. 2015, Distilling the knowledge in a neural
network, arXiv 1503.02531, section 5): a classifier whose parts vote.
"""

import itertools
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

Groups = Sequence[Sequence[int]]
"""The special classes of each specialist; none is special to two."""


class Special(nn.Module):
    """Which classes are special to which specialist, for every image of a batch."""

    classes: Bool[Tensor, "specialists classes"]

    def __init__(self, groups: Groups, classes: int) -> None:
        super().__init__()
        table = torch.zeros(len(groups), classes, dtype=torch.bool)
        for row, group in zip(table, groups, strict=True):
            row[list(group)] = True
        self.register_buffer("classes", table)

    def forward(self, logits: Float[Tensor, "batch classes"]) -> Bool[Tensor, "batch specialists classes"]:
        """The same table for each row of `logits`."""
        return self.classes.expand(logits.shape[0], -1, -1)


class Experts(nn.Module):
    """The specialists as one module: the logits of each over all classes."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(
        self, images: Float[Tensor, "batch channels height width"], less: Float[Tensor, "specialists classes"]
    ) -> Float[Tensor, "batch specialists classes"]:
        """Their logits, less what a training takes off."""
        return torch.stack([network(images).float() for network in self.networks], dim=1) - less


class Specialists(nn.Module):
    """A generalist, and a specialist for each of some groups of its classes. The logits are those of their vote.

    A specialist has a class for each of its special classes and one more, the dustbin, for all the rest. Here the
    dustbin's logit is the log-sum-exp of the logits of the rest, so that a specialist begins as the generalist, and any
    network can be one.

    A specialist votes on an image if the generalist's most probable class is special to it (the paper's n is 1). Groups
    have no class in common, so that one votes at the most. The vote is the distribution q for which KL(p_g, q) +
    KL(p_m, q) is least: q is compared with the specialist's dustbin by the sum of the classes that this stands for. The
    paper descends on the logits of q. For one specialist q is known: the mean of both, with the dustbin spread over its
    classes as the generalist has it. All specialists run on all images: the network is a program without branches.

    Half of what a specialist trains on is of its special classes. The paper then adds to the dustbin's logit the
    logarithm of the proportion by which these are oversampled. Here a training takes it off: the specialist is the same
    after that correction, and it begins as the generalist. The generalist does not train, and no gradient leads
    through the vote.
    """

    learns_by: ClassVar[tuple[str, ...]] = ("specialists",)
    """The default of `--loss` for such a student."""
    shares: Float[Tensor, " specialists"]
    """Of the images it trains on, the share of those of its special classes."""

    def __init__(self, generalist: nn.Module, networks: Sequence[nn.Module], groups: Groups, classes: int) -> None:
        super().__init__()
        self.generalist = generalist.requires_grad_(False)
        self.experts, self.special = Experts(networks), Special(groups, classes)
        self.register_buffer("shares", torch.full((len(groups),), 0.5))

    def train(self, mode: bool = True) -> "Specialists":
        """The specialists alone train."""
        super().train(mode)
        self.generalist.eval()
        return self

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """The logits of the vote."""
        with torch.no_grad():
            general: Tensor = self.generalist(images).float()
        said = self.experts(images, self._less() if self.training else torch.zeros_like(self.special.classes.float()))
        special = self.special(general)
        with torch.no_grad():
            return self._vote(general.log_softmax(dim=1), said.detach().log_softmax(dim=2), special)

    def _vote(
        self,
        general: Float[Tensor, "batch classes"],
        said: Float[Tensor, "batch specialists classes"],
        special: Bool[Tensor, "batch specialists classes"],
    ) -> Float[Tensor, "batch classes"]:
        """The logarithm of the vote, from the logarithms of the probabilities."""
        each, least = general[:, None].expand_as(said), torch.finfo(general.dtype).min
        dustbins, theirs = (x.masked_fill(special, least).logsumexp(dim=2, keepdim=True) for x in (said, each))
        spread = torch.where(special, said, each + dustbins - theirs)
        likeliest = general.argmax(dim=1)[:, None, None].expand(-1, special.shape[1], 1)
        votes = special.gather(2, likeliest)
        heard = torch.where(votes, spread, 0.0).sum(dim=1)
        return torch.logaddexp(general, torch.where(votes.any(dim=1), heard, general)) - math.log(2)

    def _less(self) -> Float[Tensor, "specialists classes"]:
        """What is taken off the logits of the rest: the logarithm of how much rarer special images are than half."""
        odds = ((1 - self.shares) / self.shares).log()
        return odds[:, None] * (~self.special.classes).float()


def specialists(network: str, groups: str, num_classes: int = 10) -> Specialists:
    """The network of the MODEL text `network` as the generalist, with specialists for `groups=0+3+5 1+7` of classes.

    The text is enough to build it. Raises: ValueError for a group of fewer than two classes, or of all, and for a class
    that is none of the network's.
    """
    from dfkd.models.find import MODEL  # it needs this package's list of networks

    parsed = parse_groups(groups)
    for group in parsed:
        if not 2 <= len(group) < num_classes or max(group) >= num_classes:
            raise ValueError(f"group {spell_groups([group])} is not 2 to {num_classes - 1} of {num_classes} classes")
    generalist, *networks = (MODEL.look_up(network).build() for _ in range(len(parsed) + 1))
    return Specialists(generalist, networks, parsed, num_classes)


def parse_groups(text: str) -> list[list[int]]:
    """The classes of each group. Raises: ValueError for another form."""
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
    """As `parse_groups` reads them."""
    return " ".join("+".join(map(str, group)) for group in groups)
