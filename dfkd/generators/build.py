"""`NAME[:key=value,...]` -> a method, built for a teacher."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dfkd.generators.base import Method, Task
from dfkd.models.classifier import Classifier
from dfkd.models.features.find_taps import find_taps, group_of
from dfkd.models.features.taps import parse_taps
from dfkd.models.load import Model
from dfkd.system import names
from dfkd.system.device import Place
from dfkd.system.errors import RequestError
from dfkd.system.files import hash_file
from dfkd.training.sources import Source

METHODS = ["dfkd.generators"]
_GIVEN = ("task",)


@dataclass(frozen=True)
class Chosen:
    """A method by its name, checked, before there is anything to build it for."""

    named: names.Named
    target: type[Method]

    @property
    def spelled(self) -> str:
        """The canonical spelling, with everything that decides the method."""
        full = names.spelled(self.target, self.named, "generator", _GIVEN)
        files = [v for v in self.named.options.values() if isinstance(v, str) and Path(v).is_file()]
        read = "".join(f" (file {hash_file(Path(file))[:16]})" for file in files)
        return names.with_code(self.target, full) + read


def choose(text: str, option: str) -> Chosen:
    """The method that `text` names. Raises: RequestError for an unknown one, or an option that it has not."""
    named = names.parse(text)
    target = names.find(named.name, METHODS, "generator")
    if not (isinstance(target, type) and issubclass(target, Method)):
        raise RequestError(f"{option} {named.name!r} is no dfkd.generators.base.Method")
    names.check_options(target, named, option, _GIVEN)
    return Chosen(named if "." in named.name else replace(named, name=named.name.lower()), target)


def build(
    chosen: Chosen,
    teacher: Model,
    place: Place,
    *,
    batch: int,
    seed: int,
    taps: Sequence[str] = (),
    wanted: Tensor | None = None,
    real: Source | None = None,
) -> Method:
    """Build a method for a teacher; `taps` are its features by hand, the rest is as in `Task`.

    Raises: RequestError for a teacher whose input size is not known, or whose features cannot be found.
    """
    if teacher.image_size is None:
        raise RequestError(f"the input size of {teacher.spec} is not known; --image-size says it")
    by_hand = {name: tap for name, tap in parse_taps(taps).items() if group_of(name) in chosen.target.taps}
    example = torch.zeros(1, teacher.channels, teacher.image_size, teacher.image_size)
    found = find_taps(teacher.module, example, by_hand, chosen.target.taps)
    classifier = Classifier(teacher, place, found.taps)
    if batch < 2:
        raise RequestError(f"--batch-size {batch} is too small for {chosen.named.name}: BatchNorm needs 2 images")
    task = Task(classifier, teacher.image_size, batch, seed, wanted, real)
    method: Method = names.build(chosen.target, chosen.named, "generator", task=task)
    return method
