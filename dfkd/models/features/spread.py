"""Forward passes of several processes over one batch: each computes its rows, and all get the outputs of all rows."""

from collections.abc import Callable, Collection
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from dfkd.models.features.outputs import Outputs
from dfkd.models.features.taps import in_group
from dfkd.system import ranks
from dfkd.system.shares import own, own_random, whole

Answer = Callable[[Float[Tensor, "batch channels height width"]], Outputs]


def spread(answer: Answer) -> Answer:
    """Return a function like `answer`, for a view that every rank has. Each rank computes its own rows.

    Gradients reach the view. If the view has fewer images than there are ranks, each rank computes all rows.
    """

    def everywhere(view: Float[Tensor, "batch channels height width"]) -> Outputs:
        if ranks.count() == 1 or len(view) < ranks.count():
            return answer(view)
        with own_random(view.device):
            outputs = answer(own(view))
        return gathered(outputs, len(view), outputs.features)

    return everywhere


def gathered(outputs: Outputs, of: int, taps: Collection[str], view: bool = False) -> Outputs:
    """Gather the outputs of all ranks' rows, with the features whose tap or group is in `taps`.

    `of` is the number of rows of the whole batch. `view` tells whether to gather the images too.
    """
    if ranks.count() == 1:
        return outputs
    wanted = [name for name in outputs.features if name in taps or any(in_group([name], tap) for tap in taps)]
    return replace(
        outputs,
        logits=whole(outputs.logits, of),
        features={name: whole(outputs.features[name], of) for name in wanted},
        kept=None if outputs.kept is None else whole(outputs.kept, of),
        view=whole(outputs.view, of) if view and outputs.view is not None else None,
        rows=None if outputs.rows is None else whole(outputs.rows, of),
        peers=tuple(whole(logits, of) for logits in outputs.peers),
    )
