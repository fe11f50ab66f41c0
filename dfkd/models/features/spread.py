"""A network's pass over a batch that several processes share: each answers its rows, and all get the answers to all."""

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
    """The same answers to a view that every rank has; each rank computes those to its rows.

    Gradients reach the view. A view of fewer images than there are ranks is answered by each as a whole.
    """

    def everywhere(view: Float[Tensor, "batch channels height width"]) -> Outputs:
        if ranks.count() == 1 or len(view) < ranks.count():
            return answer(view)
        with own_random(view.device):
            outputs = answer(own(view))
        return gathered(outputs, len(view), outputs.features)

    return everywhere


def gathered(outputs: Outputs, of: int, taps: Collection[str], view: bool = False) -> Outputs:
    """The outputs of all ranks' rows, of features those in `taps` (also by group), of the rest what is there.

    `view`: with the images.
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
