"""Several classifiers as one network, with several ways to mix their logits or probabilities."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dfkd.config.stages.shared import Mixing

LOGITS: Mixing = "mean-logits"
LEARNED: Mixing = "learned"
_STEPS, _ROUNDS = 40, 100
"""Iterations of the two searches for the distribution nearest to all teachers. Each is a few numbers per image."""
_FAR = 3.0
"""Largest change of a value in one Newton step, in natural logarithms."""
_RIDGE = 1e-9
"""Added to the diagonal of the scaled curvature, which is 1. A constant shift of all values has no curvature."""
_LEAST = 1e-6
"""Smallest weight of a teacher by entropy: all teachers may be unsure of an image, and weights must not all be 0."""
_FLOOR = 1e-200
"""Smallest probability in divisions and logarithms."""


@dataclass(frozen=True)
class Part:
    """One classifier of an ensemble, with the mapping of its input and classes to those of the ensemble."""

    network: nn.Module
    classes: Sequence[int]
    """The ensemble's class for each logit. The number at `other` has no meaning."""
    size: int | None = None
    """Side in pixels of the network's images. None: images are not resized."""
    scale: tuple[float, ...] | None = None
    """Factors per channel from the ensemble's normalization to the network's. None: both are the same."""
    shift: tuple[float, ...] | None = None
    """Summands per channel, added after `scale`."""
    weight: float = 1.0
    class_weights: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    """Factors of `weight` by class of the ensemble."""
    other: int | None = None
    """Index of the logit that stands for all classes that the network lacks."""


class Ensemble(nn.Module):
    """Several classifiers as one network, which takes the input of the first.

    Teacher m has a weight v_m(k) for each class k. The weight is 0 for a class that the teacher lacks. All outputs
    cover the union of the classes.

    `mean-logits` is the mean of the logits of the teachers that have the class:

        sum_m v_m(k) z_m(k) / sum_m v_m(k)

    If teachers have different classes, each teacher's logits are shifted to mean 0, because their level has no meaning.
    For teachers without common classes, the result is their concatenated logits (Amalgamating Knowledge,
    https://arxiv.org/abs/1811.02796). An `other` class stands for the classes that the teacher lacks. Each of them gets
    the logit z - log(number of classes that the teacher lacks).

    The other mixings compute the distribution q that is nearest to the teachers' p_m. q minimizes

        sum_m a_m sum_k v_m(k) p_m(k) log(p_m(k) / q_m(k))

    If all teachers have the same classes, q_m is q, and q is the weighted mean of the probabilities. For a teacher with
    fewer classes, q_m is q restricted to them: q_m(k) = q(k) / sum_{its j} q(j) (Unifying Heterogeneous Classifiers,
    https://arxiv.org/abs/1904.06062). An `other` class stands for the rest: q_m(other) = sum_{not its j} q(j) (section
    5 of https://arxiv.org/abs/1503.02531).

    a_m is 1 for `mean-probabilities`, max_k p_m(k) for `confidence`, and 1 - H(p_m) / log(number of its classes) for
    `entropy`. `learned` is `mean-probabilities` with the weights v_m(k) of `dfkd.models.learned_mixing`. The logits are
    log q, shifted to mean 0.
    """

    weights: Tensor
    """Weights v_m(k), [teachers, classes]."""
    rest: Tensor
    """Weight of each teacher's `other` class, [teachers]. 0 for a teacher without one."""
    belongs: Tensor
    """[groups, teachers]: 1 if the teacher has the classes of the group. A group has one set of teachers."""
    grouped: Tensor
    """[classes, groups]: 1 if the class is in the group."""

    def __init__(self, parts: Sequence[Part], classes: int, mixing: Mixing = LOGITS) -> None:
        """Combine the parts. `classes` is the number of classes of the union; each belongs to at least one part."""
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
            # the part's logit for each class of the union; one past the last for a class that the part lacks
            place = torch.full((classes,), len(part.classes))
            place[own] = torch.tensor([i for i in range(len(part.classes)) if i != part.other])
            self.register_buffer(f"place{m}", place)
            if part.scale is not None and part.shift is not None:
                self.register_buffer(f"scale{m}", torch.tensor(part.scale)[:, None, None])
                self.register_buffer(f"shift{m}", torch.tensor(part.shift)[:, None, None])
        self.register_buffer("weights", weights)
        # the `other` class of a teacher that has all classes stands for none
        others = [0.0 if part.other is None else part.weight for part in parts]
        self.register_buffer("rest", torch.where((weights == 0).any(dim=1), torch.tensor(others), 0.0))
        patterns, group_of = torch.unique(weights.T > 0, dim=0, return_inverse=True)
        self.register_buffer("belongs", patterns.float())
        self.register_buffer("grouped", F.one_hot(group_of, len(patterns)).float())
        self._same = len(patterns) == 1
        """Whether all teachers have the same classes."""

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits of the ensemble."""
        answers = [self._ask(m, images) for m in range(len(self.members))]
        return self._mean_logits(answers) if self.mixing == LOGITS else self._nearest(answers)

    def each(self, images: Float[Tensor, "batch channels height width"]) -> list[Float[Tensor, "batch classes"]]:
        """Return each member's logits over the union, with the lowest finite value for classes it lacks."""
        answers = (self._ask(m, images) for m in range(len(self.members)))
        return [self._over_union(m, answer, torch.finfo(answer.dtype).min) for m, answer in enumerate(answers)]

    def _ask(self, m: int, images: Tensor) -> Tensor:
        """Compute a member's own logits, in float32."""
        size = self._sizes[m]
        if hasattr(self, f"scale{m}"):
            images = images * getattr(self, f"scale{m}") + getattr(self, f"shift{m}")
        if size is not None and images.shape[-1] != size:
            images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
        logits: Tensor = self.members[m](images)
        return logits.float()

    def _over_union(self, m: int, values: Tensor, absent: Tensor | float) -> Tensor:
        """Expand a member's values to the union of classes. Classes that the member lacks get `absent`."""
        # not `len`, which torch.export makes a constant
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
        """Compute the logarithm of the nearest distribution in float64, which autocast does not change."""
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
    """Return log(q / sum of `words` over members) by group, for members without an `other` class.

    Let v_m = log(sum of m's words / q of m's classes). Then q of a group is the sum of the group's words, divided by
    the sum of exp(v_m) over the group's members. v minimizes the convex function sum_g words_g log sum_m exp(v_m) -
    sum_m words_m v_m, which has one variable per member. Newton steps find v. Groups of a single member do not affect v
    and are left out. Only the last step has a gradient. By the implicit function theorem, this is the gradient of the
    solution.
    """
    some = words * (has.sum(dim=1) > 1)
    said, own = some.sum(dim=1), some.sum(dim=2)
    v = torch.where(own > 0, own.clamp_min(_FLOOR).log(), 0.0).detach()
    for _ in range(_STEPS if len(has[0]) > 2 else 0):  # for two members the start is the minimum
        v = v + _newton(v, said.detach(), own.detach(), has).clamp(-_FAR, _FAR)
    v = v + _newton(v, said, own, has)
    among = v[:, None, :].masked_fill(~has, float("-inf")).logsumexp(dim=2)
    total = words.sum(dim=1).clamp_min(_FLOOR).log()
    # groups that no chain of members links keep their share of the words
    linked = _linked(has)
    log_q = total - among
    apart = torch.where(linked[None], log_q[:, None, :], float("-inf")).logsumexp(dim=2)
    shares = torch.where(linked[None], total[:, None, :], float("-inf")).logsumexp(dim=2)
    return (shares - apart) @ (linked.double() / linked.sum(dim=0)) - among


def _newton(v: Tensor, said: Tensor, own: Tensor, has: Tensor) -> Float[Tensor, "batch members"]:
    """Return Newton's step for `_closed`. Gradients pass through `said` and `own`."""
    share = v[:, None, :].masked_fill(~has, float("-inf")).softmax(dim=2)
    flow = said[:, :, None] * share
    short = own - flow.sum(dim=1)
    flow = flow.detach()
    size = flow.sum(dim=1).clamp_min(_FLOOR).sqrt()
    curved = torch.diag_embed(flow.sum(dim=1)) - flow.transpose(1, 2) @ share
    curved = curved / (size[:, :, None] * size[:, None, :]) + _RIDGE * torch.eye(len(has[0]), device=v.device)
    return _solved(curved, short / size) / size


def _solved(matrix: Float[Tensor, "batch n n"], right: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
    """Solve small positive definite systems by elimination, with operators that all exported formats have."""
    rows = torch.cat([matrix, right[:, :, None]], dim=2)
    for k in range(rows.shape[1]):
        pivot = rows[:, k : k + 1] / rows[:, k : k + 1, k : k + 1]
        others = rows - rows[:, :, k : k + 1] * pivot
        rows = torch.cat([others[:, :k], pivot, others[:, k + 1 :]], dim=1)
    return rows[:, :, -1]


def _linked(has: Bool[Tensor, "groups members"]) -> Bool[Tensor, "groups groups"]:
    """Return for each pair of groups whether a chain of members links them. A member links the groups that it has."""
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
    """Return log(q / sum of `words` over members) by group, where the `open` members have an `other` class.

    `left` is the weighted probability of the `other` class. Each round minimizes an upper bound of the divergences that
    equals them at the last round's q. This is expectation-maximization: the probability of the `other` class is spread
    over its classes in proportion to q.
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
    """Return the mean over members with weights per class."""
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
"""Factor a_m of a member for each mixing, from the member's log-probabilities."""


def leader(module: nn.Module) -> tuple[str, nn.Module]:
    """Return the network whose features and layers stand for a classifier: itself, or the first of an ensemble.

    Returns the network's path within `module` too: empty, or with a dot at its end.
    """
    path = ""
    while isinstance(module, Ensemble):
        path, module = f"{path}members.0.", module.members[0]
    return path, module
