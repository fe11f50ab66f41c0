"""The weighted sum of losses, as written in `--loss kd explicit:0.5 relation:1`."""

import functools
from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from dfkd import names
from dfkd.errors import RequestError
from dfkd.outputs import Outputs

LOSSES = ["dfkd.distill.losses"]


class Objective(nn.Module):
    """Named losses and their weights. The parameters of the losses train with the student."""

    def __init__(self, terms: Sequence[tuple[str, float, Callable[[Outputs, Outputs], Tensor]]]) -> None:
        super().__init__()
        self._terms = list(terms)
        # registered under positions: a loss's own name may hold dots, which module names may not
        self.losses = nn.ModuleList(loss for _, _, loss in terms if isinstance(loss, nn.Module))

    @property
    def taps(self) -> frozenset[str]:
        """The features that the losses read."""
        return frozenset(tap for _, _, loss in self._terms for tap in getattr(loss, "taps", ()))

    def setup(self, student: Outputs, teacher: Outputs) -> None:
        """Let the losses build their parameters from the outputs of a first batch."""
        for _, _, loss in self._terms:
            if hasattr(loss, "setup"):
                loss.setup(student, teacher)

    def forward(self, student: Outputs, teacher: Outputs) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The total, and each loss before its weight (detached, for the metrics)."""
        total = student.logits.new_zeros(())
        values = {}
        for name, weight, loss in self._terms:
            value = loss(student, teacher)
            total = total + weight * value
            values[name] = value.detach()
        return total, values


def build_objective(specs: Sequence[str]) -> Objective:
    """An Objective from `NAME[:WEIGHT][,key=value...]` texts; a weight that is not written is 1.

    Raises: RequestError for no loss at all, an unknown one, or two weights.
    """
    terms: list[tuple[str, float, Callable[[Outputs, Outputs], Tensor]]] = []
    for spec in specs:
        named = names.parse(spec)
        if len(named.numbers) > 1:
            raise RequestError(f"--loss {spec!r} has {len(named.numbers)} weights; write one number")
        target = names.find(named.name, LOSSES, "loss")
        if isinstance(target, type):
            loss = names.build(target, named, "loss")
        else:
            given = {"student": None, "teacher": None}
            loss = functools.partial(target, **names.check_options(target, named, "loss", given))
        again = sum(name.partition("#")[0] == named.name for name, _, _ in terms)
        name = f"{named.name}#{again + 1}" if again else named.name
        terms.append((name, named.numbers[0] if named.numbers else 1.0, loss))
    if not terms:
        raise RequestError("--loss names no loss; kd is the usual one")
    return Objective(terms)
