"""Weights of an ensemble's teachers for each class, learned from images without labels."""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dfkd.models.classifier import Classifier
from dfkd.models.ensemble import Ensemble
from dfkd.models.load import Model
from dfkd.system.console import say
from dfkd.system.device import Place
from dfkd.system.errors import RequestError

IMAGES = 5_000
"""Largest number of images from which the weights are learned."""
_ROUNDS = 50
_PRIOR = 0.1
"""Added to every count, so that a prediction that never occurred keeps a probability."""
_SURE = 0.99
"""Upper bound of a teacher's share of right predictions."""
_LEAST = 0.01
"""Lower bound of a weight."""


def confusions(
    said: Sequence[Int[Tensor, "images classes"]],
) -> tuple[Float[Tensor, " classes"], list[Float[Tensor, "classes classes"]]]:
    """Estimate the class frequencies, and each teacher's confusion matrix, without labels.

    Maximum likelihood estimation of observer error-rates using the EM algorithm (Dawid and Skene, 1979): the class of
    an image is hidden, and the teachers' predictions are independent given the class. Row k of a teacher's matrix is
    the distribution of its predictions for images of class k. `said` has a one at each teacher's predicted class. The
    first estimate of an image's class is the share of the teachers that predict each class.
    """
    answers = [one.double() for one in said]
    known = torch.stack(answers).mean(dim=0)
    for _ in range(_ROUNDS):
        frequent = known.mean(dim=0).clamp_min(1e-12)
        tables = [known.T @ one + _PRIOR for one in answers]
        tables = [table / table.sum(dim=1, keepdim=True) for table in tables]
        log = frequent.log() + sum(one @ table.log().T for one, table in zip(answers, tables, strict=True))
        known = log.softmax(dim=1)
    return frequent, tables


def class_weights(said: Sequence[Int[Tensor, "images classes"]]) -> Float[Tensor, "teachers classes"]:
    """Return the weight of each teacher for each class: log((C - 1) a / (1 - a)).

    C is the number of classes. a is the probability that the teacher's prediction of the class is right, by
    `confusions`. Among votes of independent predictions, the one weighted by log-odds is right most often (Nitzan and
    Paroush, 1982).
    """
    frequent, tables = confusions(said)
    classes, found = len(frequent), []
    for table in tables:
        joint = frequent[:, None] * table
        right = (joint.diag() / joint.sum(dim=0)).clamp(1e-6, _SURE)
        found.append((right / (1 - right)).log() + math.log(classes - 1))
    return torch.stack(found).clamp_min(_LEAST)


@torch.no_grad()
def learn_weights(model: Model, batches: Iterable[Tensor], place: Place) -> None:
    """Multiply an ensemble's weights by those learned from its predictions for some images.

    Raises: RequestError if a teacher has an `other` class, which is no class of the other teachers.
    """
    ensemble = model.module
    assert isinstance(ensemble, Ensemble)
    if bool((ensemble.rest > 0).any()):
        raise RequestError(
            "--mixing learned does not work with an `other` class; leave it out, or give another --mixing"
        )
    classifier, said = Classifier(model, place), [list[Tensor]() for _ in ensemble.members]
    for pixels in batches:
        with place.autocast():
            for one, logits in zip(said, ensemble.each(classifier.preprocess(pixels)), strict=True):
                one.append(F.one_hot(logits.argmax(dim=1), model.classes).cpu())
    weights = class_weights([torch.cat(one) for one in said])
    # rounded: differences in rounding between machines must not make another teacher
    ensemble.weights.mul_((weights * 1000).round().to(ensemble.weights) / 1000)
    if len(said) == 2:
        say("note: with two teachers, --mixing learned cannot tell which one is right; give three or more")
    for number, row in enumerate(weights, 1):
        least, most = int(row.argmin()), int(row.argmax())
        low, high = (model.class_names[k] if model.class_names else k for k in (least, most))
        say(f"teacher {number} counts {row.min():.2f} (class {low}) to {row.max():.2f} (class {high}), learned")
