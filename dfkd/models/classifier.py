"""A frozen classifier with its normalization, logits and taps. The teacher and an evaluated student both use it."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from dfkd.data import Pool
from dfkd.models.features.fold_batchnorm import folded
from dfkd.models.features.outputs import Outputs
from dfkd.models.features.taps import Tap, Tapped, network_code
from dfkd.models.health import CHECKED_IMAGES, check_health
from dfkd.models.load import Model
from dfkd.models.noise import noise
from dfkd.models.sharded import is_sharded, through_logits
from dfkd.models.state import tensors_of
from dfkd.system.device import Place


def answer(network: Tapped, place: Place, view: Float[Tensor, "batch channels height width"]) -> Outputs:
    """Run a network on a normalized batch, and return float32 logits and features with gradients."""
    with place.autocast():
        logits, features = network(view)
    return Outputs(logits.float(), features)


class Classifier:
    """A frozen model in evaluation mode at a place. Its features are taken at `taps`."""

    def __init__(self, model: Model, place: Place, taps: Mapping[str, Tap] | None = None, fold: bool = False) -> None:
        """Freeze the model and move it to the place.

        With `fold`, a copy with folded BatchNorm layers computes the outputs, if folding is possible. The outputs are
        the same up to rounding. Hooks on the model's own layers do not run. The copy needs as much device memory as a
        second teacher. A sharded teacher (`dfkd.models.sharded`) is not copied.
        """
        self.model, self.place = model, place
        self._divided = is_sharded(model.module)
        if self._divided:  # its parameters are on their devices already, and it cannot be copied
            module = model.module
        else:
            with network_code(model.module):
                module = model.module.eval().requires_grad_(False).to(place.device)
                module = module.to(memory_format=torch.channels_last)
        if fold and not self._divided and model.image_size is not None:
            views = noise(4, model.channels, model.image_size).to(place.device, memory_format=torch.channels_last)
            module = folded(module, taps or {}, views.split(2)).to(memory_format=torch.channels_last)
        self.taps = dict(taps or {})
        self._run = Tapped(module, self.taps)
        self.network: nn.Module = module
        """The module that runs: the model's own, or its folded copy."""

    def adopt(self, other: "Classifier") -> bool:
        """Replace this network by the other classifier's if all tensors and the place are equal, to save memory.

        Returns whether the network was replaced.
        """
        ours, theirs = (tensors_of(classifier.network) for classifier in (self, other))
        same = ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())
        if same and self.place == other.place:
            self._run.remove()
            self._divided = other._divided
            self.model, self.network, self._run = other.model, other.network, Tapped(other.network, self.taps)
        return same and self.place == other.place

    def preprocess(
        self, pixels: UInt8[Tensor, "batch height width channels"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Move pixels to the classifier's device, and convert them to the network's input."""
        return self.model.preprocess(pixels.to(self.place.device, non_blocking=True))

    @torch.no_grad()
    def outputs(self, view: Float[Tensor, "batch channels height width"]) -> Outputs:
        """Return float32 logits and features of a normalized batch, without gradients."""
        return self.answer(view)

    def answer(self, view: Float[Tensor, "batch channels height width"], exact: bool = False) -> Outputs:
        """Return float32 logits and features of a normalized batch, with gradients to the view only.

        With `exact`, the network computes in float32, whatever the place's precision is.
        """
        place = replace(self.place, dtype=torch.float32) if exact else self.place
        outputs = answer(self._run, place, view)
        return through_logits(outputs) if self._divided and outputs.logits.requires_grad else outputs

    def __call__(self, pixels: UInt8[Tensor, "batch height width channels"]) -> Outputs:
        """Return float32 logits and features of a batch of pixels, without gradients."""
        return self.outputs(self.preprocess(pixels))


def examine(classifier: Classifier, data: Pool) -> None:
    """Check the outputs for the first images of `data`, and print whether they are valid (`dfkd.models.health`)."""
    images = data.images(np.arange(min(CHECKED_IMAGES, len(data))))
    examine_pixels(classifier, torch.from_numpy(images.readable))


def examine_pixels(classifier: Classifier, pixels: UInt8[Tensor, "batch height width channels"]) -> None:
    """Check the outputs for the given images, and print whether they are valid."""
    exact = classifier.place.dtype == torch.float32
    # not `classifier(some)`: a test counts the images that pools send through that call
    check_health(
        lambda some: classifier.outputs(classifier.preprocess(some)).logits, pixels, classifier.model.spec, exact
    )
