"""Least-squares fit of the student's classifier to the teacher's logits."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd.distill.init.fit import Fit
from dfkd.distill.init.least_squares import WIDEST, Moments
from dfkd.models.classifier import Classifier, answer
from dfkd.models.features.taps import Tap, Tapped, network_code, run_network
from dfkd.models.noise import noise
from dfkd.system.console import progress, say
from dfkd.system.errors import RequestError
from dfkd.training.sources import Batch, Source

_VIEWS, _VIEWS_AN_IMAGE, _BATCH = 8192, 8, 128
"""Number of views to fit on: the most, and the most of one image. And how many are in memory at a time."""
_RIDGE, _RIDGE_OF_FEW = 1e-3, 0.3
"""Ridge penalty on the weights, relative to the features' mean variance; two terms.

The second is multiplied by features / images. Views of one image tell less than as many images."""

_FEATURES = "features"


@torch.no_grad()
def classifier_of(network: nn.Module, channels: int, image_size: int) -> str | None:
    """Return the name of the linear layer that computes the logits, or None if no such layer does.

    A frozen layer does not count, nor does one with too many inputs. The layer is tried with other weights. It does not
    count if the logits are not what they should be then: weights may be normalized, or another part may use them.
    """
    view, outputs = noise(2, channels, image_size), dict[str, Tensor]()

    def keep(_: nn.Module, inputs: object, output: Tensor, name: str) -> None:
        outputs[name] = output

    with network_code(network):
        network.eval()
    with ExitStack() as hooks:
        for name, layer in network.named_modules():
            if name and type(layer) is nn.Linear and layer.in_features <= WIDEST and layer.weight.requires_grad:
                hooks.enter_context(layer.register_forward_hook(partial(keep, name=name)))
        logits = run_network(network, view)
    name = next((name for name, output in outputs.items() if output is logits), None)
    return name if name is not None and _decides(network, name, view) else None


def _decides(network: nn.Module, name: str, view: Tensor) -> bool:
    """Return whether other weights of a linear layer change the logits as they should."""
    layer, tapped = _linear(network, name), Tapped(network, {_FEATURES: Tap(name, "input")})
    x, before = tapped(view)[1][_FEATURES], layer.weight.clone()
    try:
        layer.weight.add_(1)
        return torch.allclose(tapped(view)[0], F.linear(x, layer.weight, layer.bias), rtol=1e-4, atol=1e-6)
    finally:
        layer.weight.copy_(before)
        tapped.remove()


def _linear(network: nn.Module, name: str) -> nn.Linear:
    layer = network.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


class ClassifierFit(Fit):
    """Fit of the linear layer that computes the student's logits. Its other layers stay as they are.

    Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution, 2022,
    https://arxiv.org/abs/2202.10054: a new classifier is trained alone first, because its random weights would change
    the layers below it. There it learns labels. Here it learns the teacher's logits, for which there is a closed form.
    """

    what = "the classifier"

    def __init__(self, source: Source, name: str) -> None:
        """Fit the layer called `name` on stored images of `source`."""
        assert source.images is not None
        self._source, self._name, self._images = source, name, min(source.images, _VIEWS)
        self.views = min(_VIEWS, _VIEWS_AN_IMAGE * self._images)

    @torch.no_grad()
    def run(self, student: nn.Module, teacher: Classifier, augment: Callable[[Batch], Tensor]) -> None:
        """Fit the layer by ridge regression of the teacher's logits on the student's features.

        The layer's former weights are not used. A constant that is added to all logits of an image changes no
        probability, so the logits' mean is subtracted first.
        """
        layer = _linear(student, self._name)
        with network_code(student):
            student.eval()
        tapped = Tapped(student, {_FEATURES: Tap(self._name, "input")})
        moments = Moments(layer.in_features, layer.out_features, layer.weight.device)
        with progress("fitting the classifier", self.views, "views") as bar:
            for start in range(0, self.views, _BATCH):
                view = augment(self._source.sample(min(_BATCH, self.views - start)))
                x = answer(tapped, teacher.place, view).features[_FEATURES].float()
                logits = teacher.outputs(view).logits
                finite = x.isfinite().all(dim=1) & logits.isfinite().all(dim=1)
                if finite.any():
                    moments.add(x[finite], (logits - logits.mean(dim=1, keepdim=True))[finite])
                bar.advance(len(view))
        tapped.remove()
        if not moments.count:
            raise RequestError("--init classifier: no view has finite teacher logits and student features")
        penalty = _RIDGE + _RIDGE_OF_FEW * layer.in_features / self._images
        zeros = torch.zeros_like(layer.weight.T)
        weights, share = moments.solve(zeros, layer.bias is not None, penalty)
        layer.weight.copy_(weights.T)
        if layer.bias is not None:
            layer.bias.copy_(moments.constant(weights))
        say(f"the classifier explains {share:.0%} of the variance of the teacher's logits on {self.views:,} views")
