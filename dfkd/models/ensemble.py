"""Several classifiers as one: each answers an image in its own way, and the logits say what they say together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dfkd.config.stages import Mixing

LOGITS: Mixing = "mean-logits"
LEARNED: Mixing = "learned"
_STEPS, _ROUNDS = 40, 100
"""Of the two searches for the distribution that is nearest to all teachers: a few numbers for each image."""
_FAR = 3.0
"""The longest step of a search, in natural logarithms."""
_RIDGE = 1e-9
"""Added to a curvature of 1: what is the same everywhere has none."""
_LEAST = 1e-6
"""Of a weight: a teacher that is quite unsure is not left out, as all may be."""
_FLOOR = 1e-200
"""Of a probability by which something is divided."""


@dataclass(frozen=True)
class Part:
    """One classifier of an ensemble, and how it stands to the others."""

    network: nn.Module
    classes: Sequence[int]
    """For each of its logits the class of the ensemble; the one that is `other` has none, and any number here."""
    size: int | None = None
    """The side of the images that it is given; None for images as they come."""
    scale: tuple[float, ...] | None = None
    """Factors that turn the ensemble's input into its own, one for each channel; None for an input as it comes."""
    shift: tuple[float, ...] | None = None
    weight: float = 1.0
    class_weights: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    """Factors of the weight by the class of the ensemble."""
    other: int | None = None
    """Which of its logits stands for all classes that it has not."""


class Ensemble(nn.Module):
    """The classifiers as one network. It takes what the first one takes.

    Each has weights v_m(k), one for each class k; a class that it has not has weight 0 there. All answers are taken
    over the union of the classes.

    `mean-logits`: the mean of the logits of the teachers that have the class, sum_m v_m(k) z_m(k) / sum_m v_m(k).
    Where teachers have different classes, each one's logits have mean 0: their level means nothing. For teachers with
    no class in common, this is their logits side by side (Amalgamating Knowledge, https://arxiv.org/abs/1811.02796).
    An `other` class speaks for the classes that the teacher has not, with a logit of z - log(their number) each.

    The other ways give the distribution q that is nearest to the teachers' p_m: the least
    sum_m a_m sum_k v_m(k) p_m(k) log(p_m(k) / q_m(k)). Among the same classes q_m is q, and the answer is the weighted
    mean of the probabilities. A teacher with fewer classes knows q only among them: q_m(k) = q(k) / sum_{its j} q(j)
    (Unifying Heterogeneous Classifiers, https://arxiv.org/abs/1904.06062). One with an `other` class says what is left:
    q_m(other) = sum_{not its j} q(j) (section 5 of https://arxiv.org/abs/1503.02531). a_m is 1 for
    `mean-probabilities`, max_k p_m(k) for `confidence`, and 1 - H(p_m) / log(its classes) for `entropy`. `learned` is
    `mean-probabilities` with weights v_m(k) that `dfkd.models.learned_mixing` finds.
    The logits are log q, with mean 0.
    """

    weights: Tensor
    """v_m(k)."""
    rest: Tensor
    """The weight of each one's `other` class, 0 where it has none."""
    belongs: Tensor
    """[groups, teachers]: 1 where the teacher has the classes of a group, which all have the same teachers."""
    grouped: Tensor
    """[classes, groups]: 1 for the group of a class."""

    def __init__(self, parts: Sequence[Part], classes: int, mixing: Mixing = LOGITS) -> None:
        """`classes` are all that one of the parts has. Every class is known to one of them."""
        super().__init__()
        self.members = nn.ModuleList(part.network for part in parts)
        self.mixing, self._sizes = mixing, [part.size for part in parts]
        self._others = [part.other for part in parts]
        weights = torch.zeros(len(parts), classes)
        for m, part in enumerate(parts):
            own = [k for i, k in enumerate(part.classes) if i != part.other]
            weights[m, own] = part.weight
            for k, factor in part.class_weights.items():
                weights[m, k] *= factor
            # for each class of the union its logit, or the one after the last for a class that it has not
            place = torch.full((classes,), len(part.classes))
            place[own] = torch.tensor([i for i in range(len(part.classes)) if i != part.other])
            self.register_buffer(f"place{m}", place)
            if part.scale is not None and part.shift is not None:
                self.register_buffer(f"scale{m}", torch.tensor(part.scale)[:, None, None])
                self.register_buffer(f"shift{m}", torch.tensor(part.shift)[:, None, None])
        self.register_buffer("weights", weights)
        # where a teacher has all the classes, its `other` one stands for none
        others = [0.0 if part.other is None else part.weight for part in parts]
        self.register_buffer("rest", torch.where((weights == 0).any(dim=1), torch.tensor(others), 0.0))
        patterns, group_of = torch.unique(weights.T > 0, dim=0, return_inverse=True)
        self.register_buffer("belongs", patterns.float())
        self.register_buffer("grouped", F.one_hot(group_of, len(patterns)).float())
        self._same = len(patterns) == 1
        """Whether all have the same classes."""

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """The logits of the ensemble."""
        answers = [self._ask(m, images) for m in range(len(self.members))]
        return self._mean_logits(answers) if self.mixing == LOGITS else self._nearest(answers)

    def each(self, images: Float[Tensor, "batch channels height width"]) -> list[Float[Tensor, "batch classes"]]:
        """What each member says by itself: its logits over all classes, least where it has not the class."""
        answers = (self._ask(m, images) for m in range(len(self.members)))
        return [self._over_union(m, answer, torch.finfo(answer.dtype).min) for m, answer in enumerate(answers)]

    def _ask(self, m: int, images: Tensor) -> Tensor:
        """A member's own logits, in float32."""
        size = self._sizes[m]
        if hasattr(self, f"scale{m}"):
            images = images * getattr(self, f"scale{m}") + getattr(self, f"shift{m}")
        if size is not None and images.shape[-1] != size:
            images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
        logits: Tensor = self.members[m](images)
        return logits.float()

    def _over_union(self, m: int, values: Tensor, absent: Tensor | float) -> Tensor:
        """A member's values over all classes; those that it has not are `absent`."""
        # not `len`, which would be a constant of an exported program
        column = absent if isinstance(absent, Tensor) else values.new_full((values.shape[0], 1), absent)
        return torch.cat([values, column], dim=1)[:, getattr(self, f"place{m}")]

    def _mean_logits(self, answers: Sequence[Tensor]) -> Tensor:
        weights, rest = self.weights.float(), self.rest.float()
        if self._same:
            return _weighted([self._over_union(m, answer, 0.0) for m, answer in enumerate(answers)], weights)
        unions, missing = [], (weights == 0).sum(dim=1).clamp_min(1)
        for m, (answer, other) in enumerate(zip(answers, self._others, strict=True)):
            level = answer - answer.mean(dim=1, keepdim=True)
            absent = 0.0 if other is None else level[:, other, None] - missing[m].log()
            unions.append(self._over_union(m, level, absent))
        return _weighted(unions, torch.where(weights == 0, rest[:, None], weights))

    def _nearest(self, answers: Sequence[Tensor]) -> Tensor:
        """The logarithm of the nearest distribution, in double precision: autocast leaves that alone."""
        certain, said, left = CERTAINTY[self.mixing], [], []
        for m, (answer, other) in enumerate(zip(answers, self._others, strict=True)):
            log_p = answer.double().log_softmax(dim=1)
            weight = certain(log_p)[:, None]
            said.append(self._over_union(m, log_p, float("-inf")) + self.weights[m].double().log() + weight.log())
            rest = torch.zeros_like(weight) if other is None else log_p[:, other, None].exp()
            left.append(weight * self.rest[m].double() * rest)
        log_q = torch.stack(said).logsumexp(dim=0)
        if not self._same:
            has, of_group = self.belongs.bool(), self.grouped.double()
            words = torch.stack(said, dim=1).exp() @ of_group
            if all(other is None for other in self._others):
                factors = _closed(words, has)
            else:
                factors = _open(words, torch.cat(left, dim=1), self.rest > 0, has, of_group.sum(dim=0))
            log_q = log_q + factors @ of_group.T
        return (log_q - log_q.mean(dim=1, keepdim=True)).float()


def _closed(words: Float[Tensor, "batch members groups"], has: Bool[Tensor, "groups members"]) -> Tensor:
    """The logarithm of q over the sum of `words`, by group, for members that say nothing of classes they have not.

    With v_m = log(sum of m's words / q of its classes), q in a group is the words there over the sum of exp(v_m) of
    those that have it. v is where sum_g words_g log sum_m exp(v_m) - sum_m words_m v_m is least: convex, of as many
    numbers as there are members, and found by Newton's steps. Groups of a single member decide nothing and are left
    out. The gradient goes through the last step alone, which is what the implicit function theorem says.
    """
    some = words * (has.sum(dim=1) > 1)
    said, own = some.sum(dim=1), some.sum(dim=2)
    v = torch.where(own > 0, own.clamp_min(_FLOOR).log(), 0.0).detach()
    for _ in range(_STEPS if len(has[0]) > 2 else 0):  # of two members it is the least already
        v = v + _newton(v, said.detach(), own.detach(), has).clamp(-_FAR, _FAR)
    v = v + _newton(v, said, own, has)
    among = v[:, None, :].masked_fill(~has, float("-inf")).logsumexp(dim=2)
    total = words.sum(dim=1).clamp_min(_FLOOR).log()
    # members that no class links keep the share of their words
    linked = _linked(has)
    log_q = total - among
    apart = torch.where(linked[None], log_q[:, None, :], float("-inf")).logsumexp(dim=2)
    shares = torch.where(linked[None], total[:, None, :], float("-inf")).logsumexp(dim=2)
    return (shares - apart) @ (linked.double() / linked.sum(dim=0)) - among


def _newton(v: Tensor, said: Tensor, own: Tensor, has: Tensor) -> Float[Tensor, "batch members"]:
    """Newton's step for `_closed`; gradients reach it from `said` and `own`."""
    share = v[:, None, :].masked_fill(~has, float("-inf")).softmax(dim=2)
    flow = said[:, :, None] * share
    short = own - flow.sum(dim=1)
    flow = flow.detach()
    size = flow.sum(dim=1).clamp_min(_FLOOR).sqrt()
    curved = torch.diag_embed(flow.sum(dim=1)) - flow.transpose(1, 2) @ share
    curved = curved / (size[:, :, None] * size[:, None, :]) + _RIDGE * torch.eye(len(has[0]), device=v.device)
    return _solved(curved, short / size) / size


def _solved(matrix: Float[Tensor, "batch n n"], right: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
    """The solution of a few positive definite equations by elimination, in operators that every exported file has."""
    rows = torch.cat([matrix, right[:, :, None]], dim=2)
    for k in range(rows.shape[1]):
        pivot = rows[:, k : k + 1] / rows[:, k : k + 1, k : k + 1]
        others = rows - rows[:, :, k : k + 1] * pivot
        rows = torch.cat([others[:, :k], pivot, others[:, k + 1 :]], dim=1)
    return rows[:, :, -1]


def _linked(has: Bool[Tensor, "groups members"]) -> Bool[Tensor, "groups groups"]:
    """Whether two groups are linked by a chain of members that have both a link and the next one."""
    links = (has.double() @ has.double().T) > 0
    for _ in range(len(has[0])):
        links = (links.double() @ links.double()) > 0
    return links


def _open(
    words: Float[Tensor, "batch members groups"],
    left: Float[Tensor, "batch members"],
    open: Bool[Tensor, " members"],
    has: Bool[Tensor, "groups members"],
    counts: Float[Tensor, " groups"],
) -> Float[Tensor, "batch groups"]:
    """The same where the `open` members say by `left` how probable all is that they have not.

    Every round goes to the least of a bound of the divergences, which touches them at the last round's q (expectation
    and maximization: what a member says of the rest is spread over it as q is).
    """
    belongs, foreign, said = has.double(), (~has).double(), words.sum(dim=1).clamp_min(_FLOOR)
    total, tells = words.sum(dim=2) + left, open.double()
    mass = said + (left / (counts @ foreign).clamp_min(1)) @ foreign.T * counts
    for _ in range(_ROUNDS):
        mass = mass / mass.sum(dim=1, keepdim=True)
        among = ((1 - tells) * total / (mass @ belongs).clamp_min(_FLOOR)) @ belongs.T
        among = among + (tells * total).sum(dim=1, keepdim=True)
        mass = (said + mass * ((left / (mass @ foreign).clamp_min(_FLOOR)) @ foreign.T)) / among
    return (mass / said).log()


def _weighted(values: Sequence[Tensor], weights: Float[Tensor, "members classes"]) -> Tensor:
    """The mean over members with weights for each class."""
    share = weights / weights.sum(dim=0)
    return torch.stack([value * part for value, part in zip(values, share, strict=True)]).sum(dim=0)


def _even(log_p: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    return torch.ones_like(log_p[:, 0])


def _confidence(log_p: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    return log_p.amax(dim=1).exp()


def _sureness(log_p: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    entropy = -(log_p.exp() * log_p).sum(dim=1) / torch.tensor(float(log_p.shape[1])).log()
    return (1 - entropy).clamp_min(_LEAST)


CERTAINTY: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"mean-probabilities": _even, "confidence": _confidence, "entropy": _sureness, LEARNED: _even}
)
"""How much each member counts, by the way of mixing: from the logarithms of its probabilities."""


def leader(module: nn.Module) -> tuple[str, nn.Module]:
    """The network whose features and layers stand for a classifier's: itself, or the first one of an ensemble.

    Returns its path within `module` too: empty, or with a dot at its end.
    """
    path = ""
    while isinstance(module, Ensemble):
        path, module = f"{path}members.0.", module.members[0]
    return path, module
