"""Preparation of a distillation: everything that the request names is opened, checked and built before any output."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dfkd.config import DistillConfig
from dfkd.config.option import is_off, named
from dfkd.config.tables import differences
from dfkd.data import Pool
from dfkd.data.locate import GivenData
from dfkd.distill import supply
from dfkd.distill.assemble import assemble
from dfkd.distill.resolve import Resolved, resolve
from dfkd.distill.trainer import Trainer
from dfkd.formats.run_records import RESULT, Result, read_result, run_folder
from dfkd.formats.shards import Shards
from dfkd.models.load import Model
from dfkd.models.own import GivenModel
from dfkd.system import ranks
from dfkd.system.files import hash_of
from dfkd.system.portable import portable
from dfkd.system.versions import versions
from dfkd.training.evaluate import check_labels, open_images
from dfkd.training.selections import ORDER

DECIDING = named(DistillConfig, lambda option: option.role == "decides")
"""Options that are part of the run's content as they are.

Other options have no influence on the student, or their resolved values are part of the content."""


@dataclass(frozen=True)
class Distillation:
    """A resolved request, ready to train; nothing is written yet."""

    config: DistillConfig
    selections: Sequence[Shards]
    teacher: Model
    student: Model
    test: Pool | None
    trainer: Trainer
    content: Mapping[str, Any]
    """Everything that decides the student."""

    @property
    def begins(self) -> str:
        """Initial weights of the student: `teacher` for the teacher's layers, `given` for its own, or `random`.

        A class from outside `dfkd` that is named without weights counts as random.
        """
        return "teacher" if self.config.init == "teacher" else "given" if self.student.has_weights else "random"

    @property
    def mutual(self) -> bool:
        """Whether the other students of the command influence this student."""
        return bool(self.trainer.objective.reads_peers) or self.config.graft > 0

    @property
    def test_fingerprint(self) -> str | None:
        """Hash of the labeled data, or None without a test; another file under the same name has another hash."""
        return hash_of(self.test.identity) if self.test is not None else None


def prepare(
    config: DistillConfig,
    teacher_given: GivenModel,
    student_given: GivenModel,
    test_given: GivenData | None,
    peers: int = 0,
) -> Distillation:
    """Open, check and build everything; `peers` is the number of other students that learn in the same command.

    Raises: RequestError for everything that can be refused before the first step.
    """
    resolved = resolve(config, teacher_given, student_given, peers)
    content = _content(resolved, student_given)  # before `assemble`, which may divide the teacher
    ranks.check_same(content, differences)
    # open the test data before the training, so that an error in its name appears at once
    test = _open_test(test_given, resolved) if test_given is not None else None
    trainer = assemble(resolved, peers)
    return Distillation(
        resolved.config, resolved.selections, resolved.teacher, resolved.student, test, trainer, content
    )


def _content(resolved: Resolved, student_given: GivenModel) -> dict[str, Any]:
    """Return everything that decides the student."""
    config, teacher = resolved.config, resolved.teacher
    options = {k: v for k, v in portable(asdict(config)).items() if k in DECIDING}
    options["batches"] = ORDER.choose(config.batches).identity
    unplanned = named(DistillConfig, lambda option: option.role != "decides")  # the plan has other fields, too
    decided = {k: v for k, v in asdict(resolved.plan).items() if k not in unplanned}
    return {
        "teacher": teacher.fingerprint(),
        "student": resolved.student.fingerprint() | _of_run(student_given),
        "normalize": teacher.normalize,
        "selections": [shards.manifest.fingerprint for shards in resolved.selections],
        "selected": [_words(shards.manifest.content.options.table) for shards in resolved.selections],
        "loss": portable(resolved.objective.spelled),
        "options": {k: v for k, v in (options | decided).items() if not is_off(DistillConfig, k, v)},
        "compute": resolved.place.describe(),
        "versions": versions("torch", "torchvision"),
        **supply.content(config, resolved.generator, teacher),
    }


def _of_run(student: GivenModel) -> dict[str, str]:
    """Return the name of the run that the student continues; empty for any other student."""
    folder = run_folder(student) if isinstance(student, str) else None
    if folder is None or not (folder / RESULT).is_file():
        return {}
    return {"run": read_result(folder, Result).name}


def _open_test(test: GivenData, resolved: Resolved) -> Pool:
    data = open_images(test, resolved.config, resolved.teacher)
    check_labels(data, resolved.teacher.classes)
    return data


def _words(options: Mapping[str, Any]) -> str:
    """Return a selection's options as text for comparisons; the selection's fingerprint already includes them."""
    return " ".join(f"{name}={value}" for name, value in options.items() if value is not None)
