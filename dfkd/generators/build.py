"""Parsing of `NAME[:key=value,...]`, and building of the named method for a teacher."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dfkd.generators.base import Method, Task
from dfkd.models.classifier import Classifier
from dfkd.models.features.find_taps import find_taps, group_of
from dfkd.models.features.taps import parse_taps
from dfkd.models.load import Model
from dfkd.system import random_state
from dfkd.system.components import Component, Kind
from dfkd.system.device import Place
from dfkd.system.errors import RequestError
from dfkd.training.sources import Source

GENERATOR = Kind("generator", ("dfkd.generators",), given=("task",), reads_files=True)


def choose(text: str) -> Component:
    """Return the method that `text` names. Raises: RequestError for an unknown method or option."""
    component = GENERATOR.look_up(text)
    if not (isinstance(component.target, type) and issubclass(component.target, Method)):
        raise RequestError(f"generator {component.name!r} is not a dfkd.generators.base.Method")
    return component.checked()


def method_class(component: Component) -> type[Method]:
    """Return the class of a chosen generator, to read its class variables."""
    assert isinstance(component.target, type) and issubclass(component.target, Method)
    return component.target


def build(
    component: Component,
    teacher: Model,
    place: Place,
    *,
    batch: int,
    seed: int,
    taps: Sequence[str] = (),
    wanted: Tensor | None = None,
    real: Source | None = None,
) -> Method:
    """Build a method for a teacher.

    `taps` are tapped features that the user names (`--teacher-taps`). The other arguments are those of `Task`. Raises:
    RequestError if the teacher's input size is unknown, if its features are not found, or if `batch` is below 2.
    """
    kind = method_class(component)
    if teacher.image_size is None:
        raise RequestError(f"the input size of {teacher.spec} is not known; give image_size")
    by_hand = {name: tap for name, tap in parse_taps(taps).items() if group_of(name) in kind.taps}
    example = torch.zeros(1, teacher.channels, teacher.image_size, teacher.image_size)
    found = find_taps(teacher.module, example, by_hand, kind.taps)
    classifier = Classifier(teacher, place, found.taps)
    if batch < 2:
        raise RequestError(f"batches of {batch} image are too small for {component.name}: BatchNorm needs 2")
    task = Task(classifier, teacher.image_size, batch, seed, wanted, real)
    with random_state.kept(seed):  # the initial weights of the method's networks
        method: Method = component.build(task=task)
    return method
