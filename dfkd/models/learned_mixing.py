"""How much each of several teachers counts for each class, learned from images without labels."""

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
"""The most that are answered for it."""
_ROUNDS = 50
_PRIOR = 0.1
"""Added to every count: an answer that never came is not impossible."""
_SURE = 0.99
_LEAST = 0.01
"""Bounds of how often a teacher is taken to be right, and of a weight."""


def confusions(
    said: Sequence[Int[Tensor, "images classes"]],
) -> tuple[Float[Tensor, " classes"], list[Float[Tensor, "classes classes"]]]:
    """How frequent the classes are, and what each teacher says for each, without labels.

    Maximum likelihood estimation of observer error-rates using the EM algorithm (Dawid and Skene, 1979): the class of
    an image is hidden, and teachers answer by it independently of each other. Row k of a teacher's table is the
    distribution of its answers to images of class k. `said` has a one where a teacher's most probable class is. It
    begins with the share of the teachers who say a class as what is known of each image.
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
    """The weight of each teacher for each class: log((C - 1) a / (1 - a)).

    C is the number of classes, and a how often the teacher is right where it says the class, by `confusions`. Of
    independent answers that are right so often, a vote by the logarithm of the odds is right most often (Nitzan and
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
    """Give an ensemble the weights that its answers to some images lead to, as factors of those that it has.

    Raises: RequestError where a teacher has a class for everything else, which answers for no class of the others.
    """
    ensemble = model.module
    assert isinstance(ensemble, Ensemble)
    if bool((ensemble.rest > 0).any()):
        raise RequestError("--mixing learned compares answers class by class; leave `other` out, or take another way")
    classifier, said = Classifier(model, place), [list[Tensor]() for _ in ensemble.members]
    for pixels in batches:
        with place.autocast():
            for one, logits in zip(said, ensemble.each(classifier.preprocess(pixels)), strict=True):
                one.append(F.one_hot(logits.argmax(dim=1), model.classes).cpu())
    weights = class_weights([torch.cat(one) for one in said])
    # rounded: other last bits of an answer are no other teacher
    ensemble.weights.mul_((weights * 1000).round().to(ensemble.weights) / 1000)
    if len(said) == 2:
        say("note: of two teachers that disagree nobody can tell who is right; --mixing learned is for three or more")
    for number, row in enumerate(weights, 1):
        least, most = int(row.argmin()), int(row.argmax())
        low, high = (model.class_names[k] if model.class_names else k for k in (least, most))
        say(f"teacher {number} counts {row.min():.2f} (class {low}) to {row.max():.2f} (class {high}), learned")
