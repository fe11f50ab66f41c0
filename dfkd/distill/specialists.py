"""`--specialists`: a trained student becomes a generalist with specialists for groups of its classes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float

from dfkd.config import DistillConfig
from dfkd.distill.compress import check_student
from dfkd.distill.objective import Objective
from dfkd.formats.shards import Shards
from dfkd.models.architectures.specialists import Specialists, spell_groups
from dfkd.models.classifier import Classifier
from dfkd.models.find import MODEL
from dfkd.models.load import Model
from dfkd.models.noise import noise, same_logits
from dfkd.models.state import tensors_of
from dfkd.select.diversity import clusters
from dfkd.system.console import say
from dfkd.system.device import Place
from dfkd.system.errors import RequestError
from dfkd.system.names import Named
from dfkd.training.selections import pieces

IMAGES = 10_000
"""Largest number of images of the selections that determine which classes are confused."""
_SAME = 1e-2
"""Tolerance of the logits, as a share of the largest one: a GPU rounds more than a CPU."""
_TRIES = 20
"""Number of k-means runs. Their initial centers matter because the covariance has few columns."""


def check(config: DistillConfig) -> None:
    """Raise RequestError for what can be refused before anything is opened."""
    if config.specialists is None:
        return
    option = f"--specialists {config.specialists}"
    if not config.samples:
        raise RequestError(f"{option} groups classes by predictions for stored images; give --samples")
    if config.source is not None:
        raise RequestError(f"{option} trains on stored images, and --source {config.source} makes more; leave it out")
    if config.init == "teacher":
        raise RequestError(f"{option} keeps the student's own weights; leave out --init teacher")
    if config.prune is not None:
        raise RequestError(
            f"{option} does not train the student itself, which --prune {config.prune:g} would leave untrained; prune "
            "it first, with a command of its own"
        )


def check_vote(config: DistillConfig, student: Model, objective: Objective) -> None:
    """Raise RequestError for losses or a generator on the vote of the specialists, through which no gradient flows."""
    if isinstance(student.module, Specialists):
        if config.source is not None:
            raise RequestError(
                f"{student.spec} has specialists, which train on stored images, and --source {config.source} makes "
                "more; leave it out"
            )
        for name in objective.names:
            if name not in Specialists.learns_by:
                raise RequestError(
                    f"--loss {name} cannot train {student.spec}: each specialist has its own loss; leave --loss out"
                )


def with_specialists(config: DistillConfig, student: Model, selections: Sequence[Shards], place: Place) -> Model:
    """Return the student with specialists, as `--specialists` requests; without the option, the student unchanged.

    Raises: RequestError for a student without weights, or if the classes cannot be divided.
    """
    count = config.specialists
    if count is None:
        return student
    option = f"--specialists {count}"
    check_student(option, student)
    if isinstance(student.module, Specialists):
        raise RequestError(
            f"{option} needs a student that is one network, and {student.spec} has specialists; leave one out"
        )
    if student.new_layers:
        raise RequestError(
            f"{option} needs a student that is trained for the teacher's classes, and the last layer of {student.spec} "
            "is new; distil it first, and name its RUN"
        )
    if 2 * count > student.classes:
        raise RequestError(f"{option}: each needs two classes, and there are {student.classes}; give a smaller number")
    found = groups_of(_covariance(student, selections, place), count, config.seed)
    if not found:
        raise RequestError(f"{option}: no group of classes is confused; leave the option out, or give another number")
    options = {"network": student.architecture, "groups": spell_groups(found), "num_classes": student.classes}
    text = str(Named("specialists", options))
    module = MODEL.look_up(text).build().eval()
    assert isinstance(module, Specialists)
    for network in (module.generalist, *module.experts.networks):
        network.load_state_dict(tensors_of(student.module))
    if not same_logits(module.generalist, student.module, noise(2, student.channels, student.trial_size), _SAME):
        raise RequestError(f"{option} needs a student whose own code returns logits, and {student.spec} does not")
    predicted = np.concatenate([shards.column("prediction") for shards in selections])
    share = torch.tensor([np.isin(predicted, group).mean() for group in found])
    module.shares.copy_(share.clamp(1 / len(predicted), 1 - 1 / len(predicted)))
    listed = "; ".join(", ".join(map(str, _named(student, group))) for group in found)
    less = "" if len(found) == count else " (a class that is confused with no other one needs none)"
    say(f"{option}: {len(found)} specialists{less}, for the classes {listed}")
    return replace(student, spec=f"{student.spec} with specialists", architecture=text, module=module)


def groups_of(covariance: Float[np.ndarray, "classes classes"], count: int, seed: int) -> list[list[int]]:
    """Return groups of two or more classes that are predicted together, as clusters of the covariance's columns.

    The paper's k-means is an online one. This is spherical k-means with faiss, because rare or confidently predicted
    classes have small columns.
    """
    number = clusters(covariance.T.astype(np.float32), count, seed, tries=_TRIES)
    found = [np.flatnonzero(number == k).tolist() for k in range(count)]
    return sorted(group for group in found if 2 <= len(group) < len(covariance))


def _covariance(student: Model, selections: Sequence[Shards], place: Place) -> Float[np.ndarray, "classes classes"]:
    """Compute the covariance of the generalist's class probabilities, over images from all selections."""
    classifier = Classifier(student, place)
    said = [classifier(pixels).logits.double().softmax(dim=1).cpu() for pixels in pieces(selections, IMAGES)]
    return np.cov(torch.cat(said).numpy(), rowvar=False)


def _named(student: Model, group: Sequence[int]) -> list[str | int]:
    return [student.class_names[k] if student.class_names else k for k in group]
